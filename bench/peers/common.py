"""What every peer script shares: which benchmarks to run, for how long, and how to report them."""
import json
import os
import statistics
import time

SECONDS = float(os.environ.get("LAPIS_BENCH_SECONDS", "1"))
now = time.process_time if os.environ.get("LAPIS_BENCH_CPU_TIME") else time.perf_counter
ONLY = [o for o in os.environ.get("LAPIS_BENCH_ONLY", "").split(",") if o]


def note(text):
    print(json.dumps({"note": text}), flush=True)


def bench(name, unit, amount, prepare):
    """prepare() returns the function to time; amount is in 1e9 units, or a count of ops when the unit is a time."""
    if ONLY and not any(o in name for o in ONLY):
        return
    try:
        work = prepare()
        start = now()
        work()
        first = now() - start
        times = [first] if first > SECONDS else []  # one run of a slow peer has to do
        while not times or (sum(times) < SECONDS and first <= SECONDS):
            t = now()
            work()
            times.append(now() - t)
    except Exception as e:  # a peer that lacks an operation loses one row, not the run
        note(f"{name}: {type(e).__name__}: {e}")
        return
    t = statistics.median(times)
    value = t * 1e6 / amount if unit.startswith("us") else amount / t / 1e9
    print(json.dumps({"name": name, "value": value, "unit": unit}), flush=True)
