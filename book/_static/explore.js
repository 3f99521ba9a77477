// The page "Explore": sliders that move over pictures computed beforehand.
(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const root = document.querySelector(".explore");
  const last = (list) => list.length - 1;

  function add(parent, tag, attributes = {}, text = "") {
    const node = parent.appendChild(document.createElement(tag));
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    node.textContent = text;
    return node;
  }

  function slider(label, values, start) {
    const line = add(root, "label", { class: "explore-slider" });
    add(line, "span", {}, label);
    const input = add(line, "input", { type: "range", min: 0, max: last(values), value: start });
    const output = add(line, "output");
    return { input, output, at: () => Number(input.value) };
  }

  // Shows a place of an atlas: a column per noise level, a row per image and variant.
  function cut(node, name) {
    const { rows, columns, png } = data.atlases[name];
    const share = (at, count) => (count > 1 ? (100 * at) / (count - 1) : 0);
    node.style.backgroundImage = `url(data:image/png;base64,${png})`;
    node.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    return (x, y) => {
      node.style.backgroundPosition = `${share(x, columns)}% ${share(y, rows)}%`;
    };
  }

  const choice = add(root, "fieldset", { class: "explore-choice" });
  add(choice, "legend", {}, "image");
  const radios = Array.from({ length: data.images }, (_, i) => {
    const label = add(choice, "label");
    const radio = add(label, "input", { type: "radio", name: "explore-image", value: i });
    radio.checked = i === 0;
    add(label, "span", {}, String(i + 1));
    cut(add(label, "span", { class: "explore-image explore-small" }), "noisy")(0, i);
    return radio;
  });
  const sigma = slider("noise level σ", data.sigmas, Math.floor(data.sigmas.length / 3));
  const side = slider("side p of a patch", data.sides, 2);
  const row = add(root, "div", { class: "explore-row" });

  function picture(name, title, variant, error) {
    const figure = add(row, "div", { class: "explore-picture" });
    const image = add(figure, "div", { role: "img", class: "explore-image" });
    const caption = add(figure, "div", { class: "explore-caption" });
    const move = cut(image, name), { variants } = data.atlases[name];
    return (i) => {
      move(sigma.at(), i * variants + variant());
      const far = error ? `, ${data.errors[error][i][variant()][sigma.at()]} from the network` : "";
      image.setAttribute("aria-label", title() + far);
      caption.textContent = title();
      add(caption, "small", {}, far.replace(", ", ""));
    };
  }

  const first = () => 0;
  const tops = data.atlases.top.variants;
  const pictures = [
    picture("noisy", () => "noisy image z", first),
    picture("network", () => "DDPM++", first),
    picture("flex", () => "PSPC-Flex", first, "flex"),
    picture("mask", () => "mask of its middle pixel", first),
    picture("square", () => `PSPC-Square, p = ${data.sides[side.at()]}`, side.at, "square"),
    picture("optimal", () => "optimal denoiser", first, "optimal"),
    ...Array.from({ length: tops }, (_, k) =>
      picture("top", () => `training image ${k + 1} of its posterior`, () => k)),
  ];

  function draw() {
    sigma.output.textContent = data.sigmas[sigma.at()];
    side.output.textContent = data.sides[side.at()];
    sigma.input.setAttribute("aria-valuetext", sigma.output.textContent);
    side.input.setAttribute("aria-valuetext", side.output.textContent);
    pictures.forEach((show) => show(radios.findIndex((radio) => radio.checked)));
  }

  root.addEventListener("input", draw);
  draw();
})();
