//go:build !agent

// Command drover is the one program of the house: it passes the command line on, carries
// signals and gives back the exit code. Nothing else belongs here.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"drover/internal/app"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := app.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
