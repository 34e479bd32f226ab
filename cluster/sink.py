"""OrderedParquet: writes a dataset as Parquet files whose names and rows are in the dataset's order."""

from typing import Any

import pyarrow.parquet as parquet
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink, FilenameProvider


class OrderedParquet(BlockBasedFileDatasink):
    """One file for each block, part-000000.parquet and so on.

    Dataset.write_parquet hands its batches to several threads, and they reach
    the file in any order. A file that is written a second time, because its
    task was retried, replaces the first.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, filename_provider=_PartNames())

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        parquet.write_table(block.to_arrow(), file)


class _PartNames(FilenameProvider):
    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:06}.parquet"
