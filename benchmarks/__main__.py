"""All benchmarks, one after the other: `make bench`."""

import sys

from benchmarks import bench_recorder

sys.exit(bench_recorder.main())
