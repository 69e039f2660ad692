"""Files of the Hugging Face hub. Nothing is fetched unless the user says "pretrained"."""


def fetched(repository: str, file: str, *, instead: str, asked: bool = True) -> str:
    """The path of a copy on this machine, fetched where there is none and it was ``asked`` for.

    Raises ValueError where it cannot be; ``instead``: what to do then.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    kept = try_to_load_from_cache(repository, file)
    if isinstance(kept, str):
        return kept
    if not asked:
        raise ValueError(
            f"{file} of {repository} is not on this machine, and nothing is fetched that was not asked for; {instead}"
        )
    try:
        return hf_hub_download(repository, file)
    except Exception as error:  # the hub client raises many kinds, of its own and of the libraries below it
        raise ValueError(
            f"{file} could not be fetched from {repository} ({type(error).__name__}); fetch it where there is a network, "
            f"and {instead}"
        ) from error
