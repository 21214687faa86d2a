"""`python -m memalpha.agent`: see `terminal`."""

from memalpha.agent.terminal import main

if __name__ == "__main__":
    main()
