"""Entry point: `amlmount` and `python -m amlmount`."""


def main() -> None:
    """Run the command line."""
    from amlmount.cli.app import run

    run()


if __name__ == "__main__":
    main()
