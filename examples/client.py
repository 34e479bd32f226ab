"""OpenAI's own client against a running service. Run: python examples/client.py [URL]"""

import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none asked for"))
model = client.models.list().data[0].id
answer = client.embeddings.create(model=model, input=["Hello, my name is", "The capital of France is Paris"])
for item in answer.data:
    print(f"{model} {item.index}: {len(item.embedding)} numbers, {item.embedding[:3]} ...")
