"""What `retain overlap` prints."""

from collections.abc import Sequence

from retain.launchers.console import new_table, open_console, print_line
from retain.launchers.planning.overlaps import Overlaps
from retain.sweeps.base.units import format_size


def print_overlaps(found: Overlaps) -> None:
    """Print a row for each direction of each pair of corpora, and what the columns are."""
    table = new_table("A", "B", "unigrams", "trigrams", "A by A", "A by B", "A shared", "A near", left=2)
    for pair in found.pairs:
        for first, second in ((0, 1), (1, 0)):
            one = pair.overlap.seen_from(pair.overlap.corpora[first])
            divergences = (f"{value:.3f}" for value in one.divergences[::2])
            entropies = ("" if value is None else f"{value:.3f}" for value in one.cross_entropies[0])
            shares = (_share(one.shared, one.documents[0]), _share(one.near[0], one.compared[0]))
            names = (_named(pair.names[place], pair.roles[place]) for place in (first, second))
            table.add_row(*names, *divergences, *entropies, *shares)
    console = open_console()
    console.print(table)
    sample = found.sample
    for line in (
        "unigrams, trigrams: Jensen-Shannon divergence in nats, from 0 (alike) to 0.693 (nothing in common), of up to "
        f"{format_size(sample['training_tokens'])} training tokens of each",
        "A by A, A by B: loss on the held-out text of A of a trigram model of A, and of B (nats per token)",
        "A shared: documents of A with an exact copy in B, among those in the first "
        f"{format_size(sample['document_tokens'])} training tokens of each",
        f"A near: those with a near duplicate in B ({sample['similarity']:.0%} of runs of {sample['shingle_words']} words), "
        f"among up to {format_size(sample['near_documents'])} documents of each",
    ):
        print_line(console, line)


def _named(name: str, roles: Sequence[str]) -> str:
    return f"{name} ({', '.join(roles)})" if roles else name


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"
