#!/usr/bin/env bash
# With sphinx-exercise, Sphinx's one-page builder no longer knows how to write other extensions' nodes.
#
# Libraries: sphinx-exercise 1.2.1, on Sphinx 7.4.7.
# Guess: a node with a handler for HTML is written by every builder of HTML, singlehtml included.
# Seen: Sphinx looks up handlers by the builder's name, and by its format only if that name has none
#   at all. sphinx-exercise registers some for "singlehtml", so all others' handlers for "html" are
#   out of reach: the build says "unknown node type" of their nodes. Without sphinx-exercise among
#   the extensions the same page is written.
# For users: before the build, put app.registry.translation_handlers["html"] under "singlehtml", too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    sphinx==7.4.7 sphinx-exercise==1.2.1 'docutils<0.22'
mkdir "$folder/page"
cat > "$folder/page/one.py" <<'END'
from docutils import nodes
from docutils.parsers.rst import Directive

class box(nodes.General, nodes.Element): pass

class Box(Directive):
    def run(self):
        return [box()]

def visit(self, node):
    self.body.append("<hr>")

def setup(app):
    app.add_node(box, html=(visit, lambda self, node: None))
    app.add_directive("box", Box)
END
printf 'Page\n====\n\n.. box::\n' > "$folder/page/index.rst"
build() { # EXTENSIONS: the messages of a build by them
    printf 'import sys\nsys.path.insert(0, ".")\nextensions = [%s]\n' "$1" > "$folder/page/conf.py"
    (cd "$folder/page" && "$folder/venv/bin/sphinx-build" -q -E -b singlehtml . "$folder/html" 2>&1) || true
}
"$folder/venv/bin/pip" list 2> "$folder/log" | grep -iE '^sphinx(-exercise|) '
alone=$(build '"one"')
both=$(build '"one", "sphinx_exercise"')
echo "alone: ${alone:-built}"
echo "with sphinx-exercise:"
echo "$both" | grep -m 1 'unknown node type'
test -z "$alone"
grep -q 'unknown node type' <<< "$both"
