"""An extension of IPython: a cell's loop that prints, and runs over nothing, is an error.

A used-up ``zip`` raises nothing and prints nothing: a table would be missing, and nobody told.
"""

import ast


def some(iterable):
    """Yield what the iterable does.

    Raises:
        ValueError: If that is nothing.
    """
    item = missing = object()
    for item in iterable:
        yield item
    if item is missing:
        raise ValueError("this loop prints, and there was nothing to loop over")


class Loops(ast.NodeTransformer):
    """Wraps what the outermost loops of a cell run over, where they print."""

    def visit_For(self, node):
        """Wrap a loop; what is inside it may loop over nothing."""
        if _prints(node):
            name = ast.Name("__loops_some", ast.Load())
            node.iter = ast.copy_location(ast.Call(name, [node.iter], []), node.iter)
            ast.fix_missing_locations(node)
        return node

    def visit_FunctionDef(self, node):
        """Leave functions as they are."""
        return node

    def visit_ClassDef(self, node):
        """Leave classes as they are."""
        return node


def _prints(node) -> bool:
    names = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return any(isinstance(name, ast.Name) and name.id == "print" for name in names)


def load_ipython_extension(shell):
    """Let the shell's cells be wrapped."""
    shell.user_ns_hidden["__loops_some"] = shell.user_ns["__loops_some"] = some
    shell.ast_transformers.append(Loops())
