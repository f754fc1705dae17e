def write_table(out, result, cost):
    raise SystemExit
