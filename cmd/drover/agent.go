//go:build agent

package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"drover/internal/app/agentd"
)

// version of drover, set by the build.
var version = "devel" //nolint:gochecknoglobals // -ldflags -X writes it

// This is the agent alone, small: built with -tags agent.
func main() {
	debug.SetGCPercent(50) // small before fast
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == "salt-call" {
		args = append([]string{"call"}, args...)
	}
	code := agentd.Main(ctx, version, args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
