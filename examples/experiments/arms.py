"""What is trained and what makes videos, as design.md has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """A recipe of ../landscape, and what is changed of it."""

    recipe: str
    changes: tuple[str, ...] = ()
    sink: int = 0
    """First latent frames of a video that stay in its context, with relative positions."""
    start: str = "ode"
    """The system whose weights it begins with."""


SMALL = ("training.batch=4",)
LONG = (*SMALL, "dmd.frames=201")
SHORT = (*SMALL, "dmd.frames=63", "training.warmup=4")
ADAPTERS = (*SHORT, "lora_rank=16", "training.lr=5e-4", "dmd.critic_lr=2e-3")
"""Adapters begin at zero and have larger rates, by a factor of 5."""
SINK = 3
CONTEXTS = (9, 15, 21)

ARMS = {
    "sf": Arm("self-forcing"),
    "pp": Arm("self-forcing-pp"),
    "sf4": Arm("self-forcing", SMALL),
    "sf4-uniform": Arm("self-forcing", (*SMALL, "dmd.gradient_step=uniform")),
    "pp4": Arm("self-forcing-pp", LONG),
    "pp4-5s": Arm("self-forcing-pp", (*SMALL, "dmd.frames=21")),
    "pp4-10s": Arm("self-forcing-pp", (*SMALL, "dmd.frames=42")),
    "pp4-25s": Arm("self-forcing-pp", (*SMALL, "dmd.frames=102")),
    "pp4-renoised": Arm("self-forcing-pp", (*LONG, "dmd.noise_init=renoised")),
    "pp4-random": Arm("self-forcing-pp", (*LONG, "dmd.noise_init=random")),
    "pp4-uniform": Arm("self-forcing-pp", (*LONG, "dmd.gradient_step=uniform")),
    "pp4-beta": Arm("self-forcing-pp", (*LONG, 'dmd.window="beta(1,2)"')),
    **{f"sf4-{frames}": Arm("self-forcing", (*SMALL, f"context={frames}")) for frames in CONTEXTS[:-1]},
    **{f"pp4-{frames}": Arm("self-forcing-pp", (*LONG, f"context={frames}")) for frames in CONTEXTS[:-1]},
    **{f"sf4-{frames}-sink": Arm("self-forcing", (*SMALL, f"context={frames}"), SINK) for frames in CONTEXTS},
    **{
        f"pp4-{frames}-sink": Arm("self-forcing-pp", (*LONG, f"context={frames}"), SINK)
        for frames in CONTEXTS
    },
    "pp4-guidance1": Arm("self-forcing-pp", (*LONG, "dmd.guidance=1.0")),
    "pp4-15s": Arm("self-forcing-pp", SHORT),
    "pp4-15s-lora": Arm("self-forcing-pp", ADAPTERS),
    "pp4-15s-lora8": Arm("self-forcing-pp", (*ADAPTERS, "lora_base=float8")),
    "grpo": Arm("grpo", start="pp@320"),
    "grpo-control": Arm("grpo", ("grpo.shuffle_advantages=true",), start="pp@320"),
}

BROUGHT = {"ode": "students/ode", "sf@320": "students/self-forcing", "pp@320": "transformer"}
"""Systems whose weights the model brings, and where in its folder."""
ROADS_OWN = {"sf": "self-forcing", "pp": "self-forcing-pp"}
"""Arms that the road of ../landscape has trained, by its runs' names."""

TEACHERS = {"teacher": 2.0, **{f"teacher-{guidance}": float(guidance) for guidance in (1, 2, 3, 4)}}
"""The teacher's clips, and with which guidance: 2 is that of the ODE pairs."""

SECONDS = {
    **dict.fromkeys(TEACHERS, 5),
    "world": 100,
    "ode": 255,
    **{f"{arm}@320": 255 for arm in ROADS_OWN},
    **{f"{arm}~1@320": 100 for arm in ROADS_OWN},
    "pp@200": 100,
}
"""How long a system's videos are; 50 s where nothing is said."""


@dataclass(frozen=True)
class System:
    """`pp4-beta~1@60`: an arm, its training seed, its updates."""

    arm: str
    seed: int
    updates: int

    @classmethod
    def of(cls, name: str) -> System:
        run, _, updates = name.partition("@")
        arm, _, seed = run.partition("~")
        return cls(arm, int(seed or 0), int(updates or 0))


def family(name: str) -> str:
    """Systems of one family are made one after the other: each goes on from the one before."""
    start = ARMS[System.of(name).arm].start if "@" in name else ""
    return family(start) if "@" in start else name.partition("@")[0]
