"""How a long video holds up: exposure, motion, repetition and their verdicts, from any video file, without
weights or network.

In a notebook:

    from sfpp_cli.evaluation import evaluate, Parameters
    report = evaluate(["a.mp4", "b.webm"], parameters=Parameters(reference_seconds=5))
    report["videos"][0]["metrics"], report["videos"][0]["verdicts"]["over_exposure"]

`results.schema.json` (a JSON Schema) describes the result. Nothing here imports torch.
"""

from sfpp_cli.evaluation.metrics.measure import measure
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.parallel import evaluate

__all__ = ["Parameters", "evaluate", "measure"]
