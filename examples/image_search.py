"""Search over images in one process, by a text and by an image. Run: python examples/image_search.py MODEL

MODEL is a CLIP or a SigLIP: a directory or a hub id, such as openai/clip-vit-base-patch32.
"""

import sys

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from pooling import LLM, Image

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")


def draw(colour: str, shape: str) -> Pillow.Image:
    picture = Pillow.new("RGB", (224, 224), "white")
    pen, box = ImageDraw.Draw(picture), (48, 48, 176, 176)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(112, 48), (48, 176), (176, 176)], fill=colour)
    return picture


names = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
pictures = [draw(colour, shape) for colour in COLOURS for shape in SHAPES]
queries = {
    "the text 'a photo of a red circle'": "a photo of a red circle",
    "the image of a blue triangle": Image.of(draw("blue", "triangle")),
}

with LLM(model=sys.argv[1], task="embed") as llm:
    images = llm.embed([Image.of(picture) for picture in pictures], use_tqdm=False)
    asked = llm.embed(list(queries.values()), use_tqdm=False)

index = np.array([output.outputs.embedding for output in images])
for query, output in zip(queries, asked, strict=True):
    scores = index @ np.array(output.outputs.embedding)  # the model normalises: a dot product is the cosine
    print(f"\nnearest to {query}:")
    for place in np.argsort(-scores, kind="stable")[:3]:
        print(f"{scores[place]:6.3f}  {names[place]}")
