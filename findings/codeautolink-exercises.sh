#!/usr/bin/env bash
# sphinx-codeautolink cannot read a page with an exercise of sphinx-exercise.
#
# Libraries: sphinx-codeautolink 0.20.0 and sphinx-exercise 1.2.1, on Sphinx 7.4.7.
# Guess: both only look at the nodes that are theirs, so a page may have exercises and linked code.
# Seen: the build ends with "IndexError: pop from empty list". The exercise wraps its text in a
#   docutils section without a title, and codeautolink takes a title off its stack after every
#   section. A page of two plain sections is read; with an exercise between them, it is not.
# For users: derive from sphinx_codeautolink.extension.block.CodeBlockAnalyser a class whose
#   depart_section does nothing for a section without a title, and put it in the extension's place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    sphinx==7.4.7 sphinx-exercise==1.2.1 sphinx-codeautolink==0.20.0 'docutils<0.22'
build() { # FOLDER: the build's messages
    "$folder/venv/bin/sphinx-build" -q -b html "$folder/$1" "$folder/$1/html" 2>&1 || true
}
for name in plain exercise; do
    mkdir "$folder/$name"
    printf 'extensions = ["sphinx_exercise", "sphinx_codeautolink"]\n' > "$folder/$name/conf.py"
done
printf 'Page\n====\n\nOne\n---\n\nText.\n' > "$folder/plain/index.rst"
printf 'Page\n====\n\nOne\n---\n\n.. exercise::\n\n   Add two numbers.\n' > "$folder/exercise/index.rst"
"$folder/venv/bin/pip" list 2> "$folder/log" | grep -iE '^sphinx(-codeautolink|-exercise|) '
plain=$(build plain)
exercise=$(build exercise)
echo "without an exercise: ${plain:-built}"
echo "with an exercise:"
echo "$exercise" | grep -A 2 'Extension error'
test -f "$folder/plain/html/index.html"
test ! -f "$folder/exercise/html/index.html"
grep -q 'pop from empty list' <<< "$exercise"
