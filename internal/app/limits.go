package app

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// limits sets what a server with thousands of connections needs: as many open files as the system
// lets it have, and a bound on memory from which the collector works harder before the kernel ends
// the process. GOMEMLIMIT in the environment goes before.
func limits(log *slog.Logger) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		files.Cur = files.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
			log.Warn("the number of open files stays as it is", "err", err)
		}
		if files.Cur < 16_384 {
			log.Warn("few files may be open at once: each host of the fleet needs one", "limit", files.Cur, "remedy", "LimitNOFILE=65536 in the unit")
		}
	}
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	most := int64(math.MaxInt64)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 { // MemTotal, in KiB
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				most = n << 10
			}
		}
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			most = min(most, n)
		}
	}
	if most < math.MaxInt64 {
		debug.SetMemoryLimit(most / 4 * 3)
	}
}
