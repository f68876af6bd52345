"""The teacher's gate: the reader looks at the sampled clips. Do they show what their captions say?

python examples/landscape/read_teacher.py --work runs/landscape --minutes 10
"""

from __future__ import annotations

import torch
from road import JUDGE_SEED, Job, job_of

from sfpp_cli.data.landscape import draw_scenes

READERS = 6
"""Threads, beside what goes on on the GPU."""


@torch.no_grad()
def run(job: Job) -> None:
    from sfpp_cli.data.landscape.reader import judge_video

    if job.cuda:
        torch.set_num_threads(READERS)
    videos = torch.load(job.work / "teacher-videos.pt", weights_only=True)["frames"]
    scenes = draw_scenes(JUDGE_SEED, range(len(videos)))
    rows = [judge_video(video, scene) for video, scene in zip(videos, scenes.attributes(), strict=True)]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    pan = scenes.truth(0, 1, job.scale.size).pan.abs().mean().item()
    ratio = sum(abs(row["speed"]) for row in rows) / len(rows) / pan
    shares = {
        "palette": ("light and colour are the caption's", 0.95),
        "balloon": ("one whole balloon of the caption's colour is there", 0.90),
        "direction": ("the camera pans the caption's way", 0.95),
    }
    gates = {
        f"{text} in {means[name]:.1%} of the frames, at least {least:.0%}": means[name] >= least
        for name, (text, least) in shares.items()
    }
    gates[f"speed is {ratio:.2f} of the world's, within 15%"] = abs(ratio - 1) <= 0.15
    job.gates("teacher", {"videos": len(rows), "means": means, "speed_ratio": ratio}, gates)
    job.say(f"teacher: { ({name: round(value, 3) for name, value in means.items()}) }")


if __name__ == "__main__":
    run(job_of(__doc__))
