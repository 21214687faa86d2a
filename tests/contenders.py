"""Contenders that `test_benchmarks.py` starts in processes of their own."""


def counts(settings: dict, rounds) -> None:
    for number, _ in enumerate(rounds):
        print("libraries may print what they like")
        rounds.share = settings["share"]
        rounds.note(number=number, given=settings["given"])


def owns_its_loop(settings: dict, rounds) -> None:
    while True:
        rounds.turn()


def breaks(settings: dict, rounds) -> None:
    next(rounds)
    raise RuntimeError("no such thing")
