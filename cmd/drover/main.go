//go:build !agent

// Command drover is the one program of the house: it passes the command line on, carries
// signals and gives back the exit code. Nothing else belongs here.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"drover/internal/app"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	args := os.Args[1:]
	if name := filepath.Base(os.Args[0]); strings.HasPrefix(name, "salt") { // by a link of that name
		args = append([]string{name}, args...)
	}
	code := app.Main(ctx, args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
