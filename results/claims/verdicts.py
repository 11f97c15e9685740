"""A verdict on each claim of the paper that a study can test. The claims have these numbers:

1a  L_im is nearly flat in exposure λ (Figure 3a)          1b  L_ret falls with λ
2a  compute-matched, L_im worsens with λ (Figure 3b)       2b  compute-matched, L_ret is best at some 0 < λ < 1
3   mixing improves the frontier (Figures 2, 8, 9)
4a  dropout, replay improve it on top of mixing (4, 5, 10, 11)     4b  alone (6, 12)
4c  alone they do less than mixing                                 4d  they gain more on top of mixing than alone (ours)
4e  mixing improves it on top of dropout, replay (Section 4.4)
5a  mixing improves the frontier of LoRA (Figure 7)        5b, 5c  full post-training has the better frontier
6a  mixing improves it more than replay in fine-tuning, L2-SP, EWC, averaging of weights, LoRA in fine-tuning (ours)
6b  mixing improves it on top of them (ours)

Claims of other papers, for studies with their designs (`analysis.sisters.designs`):
7a  1% of pretraining text in fine-tuning removes most of the forgetting     7b  smaller models forget more
8a  replay lowers the loss on rare data      8b  more where less of them came early
8c  a continued schedule has a lower target loss than a restarted one (ours)
9a  beyond a point, more pretraining raises the loss after fine-tuning       9b  more so at higher rates
10a, 10b  with the target corpus in all of pretraining, its loss and that on general text are lower after fine-tuning

Each is judged by effects paired by seed, with 95% intervals of Student's t (`analysis.effects`): supported if all intervals
lie on the claimed side, not supported if one lies on the other side even after Holm's correction for the number of the claim's
intervals, undecided otherwise and with fewer than two seeds. `python -m tools.simulations.verdict_rates` simulates how often
that errs.
"""

from collections.abc import Sequence

from retain.results.analysis.axes import EXPOSURE, is_searched
from retain.results.claims.exposure import latent_benefit, matched_optimum
from retain.results.claims.frontier import frontier_verdicts
from retain.results.claims.judging import Verdict, adjust
from retain.results.claims.sisters.forgetting_law import forgetting_verdicts
from retain.results.claims.sisters.overtraining import overtraining_verdicts
from retain.results.claims.sisters.replay_schedules import replay_verdicts
from retain.results.claims.sisters.specialised import specialised_verdicts
from retain.results.store.loss_table import Row


def verdicts(rows: Sequence[Row], matched: bool = False) -> list[Verdict]:
    """A verdict for each claim that the rows can test, in the order of the claims; partial results are judged too.

    matched: whether the study is compute-matched; an axis `allocation` overrides it for each row. Exposures above 1 are not
    the paper's and are left out.
    """
    default = "matched" if matched else "additive"
    # The points of a search were chosen by their losses, and its recipes differ in several fields at once.
    paper = [row for row in rows if not is_searched(row) and (row["axes"].get(EXPOSURE) or 0) <= 1]
    additive = [row for row in paper if row["axes"].get("allocation", default) != "matched"]
    compute_matched = [row for row in paper if row["axes"].get("allocation", default) == "matched"]
    found = [*latent_benefit(additive), *matched_optimum(compute_matched), *frontier_verdicts(additive)]
    found += [*forgetting_verdicts(paper), *replay_verdicts(paper)]
    found += [*overtraining_verdicts(paper), *specialised_verdicts(paper)]
    return adjust(found)
