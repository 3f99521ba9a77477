"""The tests, and the type checker they run the package under: beartype, taking ints for floats."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
