"""Every setting and threshold of the local metrics, each with its reason. They go into every result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from sfpp_cli.errors import UserError


@dataclass(frozen=True)
class Parameters:
    """What the numbers depend on. Luma and differences between pictures are fractions of full scale; times
    are in seconds."""

    reference_seconds: float = 5.0
    """The video's own beginning, which everything later is judged against; in a short video a third of it."""
    clip_seconds: int = 2
    """VBench-Long's clips."""
    measuring_side: int = 256
    """Videos are decoded to at most this short side: what is looked for shows there, at a third of the
    cost."""

    # --- exposure
    clipped_luma: float = 0.98
    crushed_luma: float = 0.02
    """Pixels beyond these are clipped highlights and crushed shadows."""
    exposure_way: float = 0.4
    """Over-exposed (darkened): mean luma has gone this share of the way from the reference to white (to
    black). Pans and passing objects stay below a quarter; drift to white ends near one."""
    exposure_clipped: float = 0.25
    """Or: this much more of the picture than in the reference is clipped (crushed), so without detail."""
    exposure_sustain_seconds: float = 1.0
    """A flash is no drift."""

    # --- a blank picture
    blank_contrast: float = 0.006
    """A picture is blank whose luma has a standard deviation below this, 1.5 levels of 255: fog, and night
    scenes that were darkened further, keep more."""
    blank_colours: float = 2.0
    """And whose colours are less than this far from their mean, in CIELAB units."""
    blank_seconds: float = 1.5
    """How long it has to be: cinema's fades through black and plain title cards are shorter."""

    # --- motion
    flow_short_side: int = 160
    """Flow is computed on pictures of at most this short side, by area averaging; magnitudes are in pixels of
    the video."""
    flow_window: int = 8
    """Frames over which the variance of the flow's magnitude is taken (Self-Forcing++, section 3.3)."""
    flow_spike: float = 3.0
    """A spike is a frame with this many times the usual flow of its second, and a pixel (at 256) more."""
    stagnation_ratio: float = 0.2
    """Motion has died when the fastest 5 % move at less than this share of the reference's pace. Sliding
    objects that slow down at their turning points stay above within a second."""
    stagnation_speed: float = 0.05
    """And at less than this many short sides a second: a quarter of the pace that VBench calls dynamic, so
    that a fast start does not make an ordinary pace look dead."""
    still_speed: float = 0.005
    """A video that starts slower than this is stagnant from the start; an encoder's noise is below it."""
    stagnation_seconds: float = 3.0
    """How long motion must be gone; a held pose is shorter."""
    stagnation_contrast: float = 0.3
    """Motion is not judged where contrast is below this share of the reference's: nothing could be seen."""

    # --- repetition
    repeat_min_frames: int = 81
    """Shortest offset looked for: 21 latent frames, what one training window of the teacher spans. (Shorter
    loops show at a multiple of their period.) A short video uses a quarter of its length."""
    repeat_max_seconds: float = 120.0
    """Longest offset looked for, besides half the video: keeps the cost of an hour linear."""
    norepeat_position: int | None = None
    norepeat_halfwidth: int | None = None
    """NoRepeat's P and n in frames; None spans the offsets above.

    RIFLEx does not publish n, and its P is for models with a RoPE period."""
    repeat_ratio: float = 0.25
    """Two moments are the same when their pictures differ by less than this share of what changes within a
    second around either: an encoder's noise is below, objects that merely pass the same place are above."""
    repeat_coded: float = 0.005
    repeat_coded_ratio: float = 0.4
    """Or by less than 1.3 levels of 255, as one picture coded twice does, and this share: slow motion."""
    repeat_activity: float = 0.004
    """Where less than this changes within a second nothing moves, and a frozen picture is not a loop."""
    repeat_seconds: float = 3.0
    """How much repeated time makes a loop; a path crossed twice is shorter."""

    # --- sudden changes
    chunk_first: int = 9
    chunk_period: int = 12
    """Chunk borders in video frames: three latent frames of Wan are 9 frames at the start and 12 later."""
    jump_picture: float = 0.012
    jump_luma: float = 0.006
    jump_flow: float = 0.01
    """Smallest sudden change of the picture (RMS of its 16 x 16 miniature) and of its brightness (median
    cell): 3 and 1.5 levels of 255, above what key frames and palettes do. And of the mean flow, in short
    sides a frame: 5 pixels at 480, a visible jerk."""
    jump_jerk: float = 0.008
    """And by how much more than usual the picture has to change with a jerk: 2 levels. A background with
    little detail changes by 3 when it is moved; encoders, which send the flow over plain ground anywhere,
    change it by 1.5 at most."""
    jump_ratio: float = 3.5
    """A sudden change is this many times the usual one of the second around it."""
    reversal: float = 0.75
    """Pictures that go forth and back from frame to frame: how much of the way is undone within 2, 4 or 6
    frames. Motion mostly stays below a half, and so does noise."""
    flicker_events: int = 5
    flicker_pause_seconds: float = 1.0
    """So many sudden changes in a row, with no longer pause between two of them, are flicker: jumps at border
    after border, which come at 0.75 s. An object that a model draws elsewhere now and then leaves borders
    out."""
    flicker_beat: float = 0.8
    """And more than so many beats of a steady period have one."""
    flicker_light: float = 0.4
    """CIELAB units by which brightness changes along the flow where a picture goes forth and back: rain and
    ripples, which come and go, leave it."""
    flicker_strong: float = 0.1
    """Changes of the picture of half of this cost all of the local stability."""
    cut_unmatched: float = 0.5
    """At a cut more than this share of the picture is not found again along the flow: of pans and of people
    who move at most a fifth is lost."""
    cut_around: float = 0.6
    """And around it, but for two frames, at most this part of that share: a camera that is torn aside loses
    much for several frames."""
    cut_window_seconds: float = 0.4
    """The windows before and after which are compared."""
    cut_picture: float = 0.045
    """Half of the picture differs by at least this between any two pictures before and after: 11 levels of
    255."""
    cut_ratio: float = 2.0
    """And by this many times more than between two such windows right before or after: waves change, too.
    The calmer side counts, so that the next cut may be near."""
    cut_scene_seconds: float = 0.5
    """And there is a scene of this length on either side: a decoder's odd first frame is none."""
    border_seconds: float = 1.0
    """A cut this near to where a scene is announced is meant: a model changes scene where a chunk ends."""
    cut_felt_seconds: float = 3.0
    """How long a cut lowers local stability."""

    # --- drift of the look
    same_view: float = 0.75
    """The layout of light and dark correlates at least this well with the beginning's: the view is the same,
    and what its means do is drift."""
    exposed: float = 0.7
    """Colours are judged while exposure is below this part of its threshold, and a subject while all of the
    look is: what is white, black or grey has lost its own colour."""
    calm: float = 0.25
    knee_seconds: float = 5.0
    """A drift began at the knee of its measure, looked for from this long before the measure last was below
    this part of its threshold."""
    drift_seconds: float = 0.75
    """How long a measure has to stay beyond its threshold."""
    chroma_floor: float = 2.0
    """CIELAB units, a difference that is just seen, added to chroma: in a grey picture nothing is a ratio."""
    saturation_rise: float = 0.37
    saturation_fall: float = 0.48
    """Octaves of mean chroma."""
    cast_units: float = 8.5
    """CIELAB units by which neutral grey is shifted."""
    blur_octaves: float = 0.46
    """Octaves by which the share of fine detail falls: a zoom to 1.6 takes less."""
    blur_edges: float = 1.0
    """Or by which the same view loses sharpness."""
    noise_levels: float = 1.5
    noise_ratio: float = 0.8
    """Levels of 255, and share of the beginning's noise, that have to be added to it."""

    # --- the subject
    subject_distance: float = 18.0
    """CIELAB units by which a cell stands out from every cell of the rim, and up to which two cells are of
    one colour."""
    subject_share: float = 0.015
    """Share of cells of one colour that have to stand out in the beginning."""
    subject_steady: float = 0.5
    """And in nearly every frame of it at least this part of them."""
    subject_left: float = 0.25
    """The subject is lost when less than this part is left."""
    subject_rim: float = 10.0
    """CIELAB units by which the rim's median cell may have changed meanwhile."""
    subject_seconds: float = 1.0
    """How long it has to be gone."""

    curve_points: int = 300
    """Curves in a result are averaged into at most so many points."""

    def __post_init__(self) -> None:
        lengths = ("measuring_side", "flow_short_side", "flow_window", "chunk_period", "curve_points")
        for name in ("reference_seconds", "clip_seconds", *lengths):
            if not 0 < getattr(self, name) <= 10**6:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be above 0 and at most 1000000")
        if (self.norepeat_position is None) != (self.norepeat_halfwidth is None):
            raise UserError("norepeat_position and norepeat_halfwidth go together; give both or neither")

    def key(self) -> str:
        """A digest of all of them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
