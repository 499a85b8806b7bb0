"""How long things take: operators, collectives, memory, and the engine that runs a program."""
