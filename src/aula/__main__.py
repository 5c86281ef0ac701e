"""Floor 8: the command itself, and `python -m aula`. An interrupt while modules load is as quiet as any other."""


def main() -> None:
    try:
        from aula.cli.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
