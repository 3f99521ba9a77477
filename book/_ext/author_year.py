"""A bibliography labelled as the text cites: authors and year."""

from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle


class AuthorYearLabels(BaseLabelStyle):
    """Labels such as Karras et al., 2022."""

    def format_labels(self, sorted_entries):
        """Yield one label per entry."""
        for entry in sorted_entries:
            people = entry.persons["author"]
            names = [" ".join([*person.prelast_names, *person.last_names]) for person in people]
            authors = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
            yield f"{Text.from_latex(authors)}, {entry.fields['year']}"


class AuthorYear(Style):
    """The plain style with these labels."""

    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


def setup(app):
    """Register the style with Sphinx's bibliography."""
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"parallel_read_safe": True}
