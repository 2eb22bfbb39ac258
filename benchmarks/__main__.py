"""All benchmarks, one after the other: `make bench`."""

from benchmarks import bench_recorder

bench_recorder.main()
