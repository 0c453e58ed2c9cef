"""What measures and plans, as libraries: benchmarks, verification, planning, batches. Knows no flags."""
