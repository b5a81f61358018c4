# The C face for type checkers: names and signatures are those of the portable one.
from ._portable import Verbs as Verbs
from ._portable_view import View as View
from .results import Counter as Counter
from .results import Free as Free
from .results import Materialized as Materialized
from .results import Meta as Meta
from .results import PagePtr as PagePtr
from .results import Unallocated as Unallocated
