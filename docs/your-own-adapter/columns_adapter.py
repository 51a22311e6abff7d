"""What lvlm_probe should know of the model: where its layers are, and which token shows which part of a picture."""

from lvlm_probe.adapter import Adapter, SourceSequence, TowerPaths
from lvlm_probe.grid import Box, PatchGrid
from lvlm_probe.layout import ImageSpan, TokenLayout

ROWS, COLUMNS = 3, 5
DOWNWARDS = tuple(column * ROWS + row for row in range(ROWS) for column in range(COLUMNS))


def layout(source: SourceSequence) -> TokenLayout:
    ids = source.inputs["input_ids"][0]
    places = (ids == source.config.image_token_id).nonzero().flatten().tolist()
    spans = []
    for number, (height, width) in enumerate(source.image_sizes):
        first = places[number * ROWS * COLUMNS]
        whole = Box(
            0.0, 0.0, float(width), float(height)
        )  # the picture is squeezed, nothing is cut
        tokens = PatchGrid(first, ROWS, COLUMNS, whole, order=DOWNWARDS)
        patches = PatchGrid(number * ROWS * COLUMNS, ROWS, COLUMNS, whole, order=DOWNWARDS)
        stop = first + ROWS * COLUMNS
        spans.append(ImageSpan((height, width), first, stop, (tokens,), (patches,)))
    return TokenLayout(len(ids), source.answer_start, tuple(spans), len(spans) * ROWS * COLUMNS)


ADAPTER = Adapter(
    family="columns",
    model_types=("columns",),  # model.config.model_type
    language=TowerPaths("story", attention="mix", mlp="think"),
    vision=TowerPaths("eyes", attention="mix", mlp="think"),
    projector="bridge",
    layout=layout,
    norm="norm",
    head="head",
)
