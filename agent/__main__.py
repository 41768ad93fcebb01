"""``python -m agent`` is the ``llamesh`` command."""

from agent.cli.main import main

raise SystemExit(main())
