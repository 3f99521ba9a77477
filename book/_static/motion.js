// Buttons that stop an animated picture, or start it where the system asks for less motion.
document.querySelectorAll(".motion").forEach((picture) => {
  const still = picture.querySelector("source"), button = picture.nextElementSibling;
  let moves = !matchMedia(still.media).matches;

  function show() {
    still.media = moves ? "not all" : "all";
    button.textContent = moves ? "pause" : "play";
  }

  button.addEventListener("click", () => {
    moves = !moves;
    show();
  });
  addEventListener("beforeprint", () => { still.media = "all"; });
  addEventListener("afterprint", show);
  show();
});
