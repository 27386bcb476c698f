"""Programs that use torch.nn's recurrent classes, each in its own file; `bench/clients.py` runs them.

Each file has `ROUNDS`, how long it trains, and `run(report, rounds)`, which writes into the report.
"""
