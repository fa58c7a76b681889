"""huggingface_hub against the hub that the tests of models use: what it accepts as HF_ENDPOINT is a hub."""

import os
import pathlib

import huggingface_hub

from check import check, done, equal

REPO = "o/n"
files = [pathlib.Path(path) for path in os.environ["HUB_FILES"].split(":")]


def repository_is_downloaded_whole():
    folder = pathlib.Path(huggingface_hub.snapshot_download(REPO, token=os.environ["HUB_TOKEN"]))
    equal(sorted(path.name for path in folder.iterdir()), sorted(path.name for path in files), "names of the files")
    for path in files:
        check((folder / path.name).read_bytes() == path.read_bytes(), f"content of {path.name}")
    equal(folder.name, "a" * 40, "the commit of main")


def nobody_reads_it_without_a_token():
    try:
        huggingface_hub.HfApi().model_info(REPO, revision="main", token=False)
    except huggingface_hub.errors.RepositoryNotFoundError:
        return
    check(False, "a private repository was read without a token")


repository_is_downloaded_whole()
nobody_reads_it_without_a_token()
done()
