"""`fusioner models`: the encoders that can be named."""


def models() -> None:
    """List the image and text encoders by name, those inside the package first.

    A name gives the published weights, downloaded once. `NAME@/folder` reads them from a folder, `hf:REPOSITORY` or
    `hf:/folder` is any other model of a supported type, and `A+B` puts several image encoders side by side.

        fusioner models
    """
    from fusioner.encoders.registry import available_encoders

    for kind, names in available_encoders().items():
        print(f"{kind} encoders", *names, sep="\n  ")
