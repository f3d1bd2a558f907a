package accounts

import (
	"context"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

const maxOutput = 16 << 20 // of one program

// output is what a program left behind.
type output struct {
	Out, Err string
	Code     int
}

// program runs a program to its end.
func program(ctx context.Context, stdin string, argv ...string) (output, error) {
	r, err := command.Run(ctx, command.Spec{Argv: argv, Stdin: stdin, Dir: "/", Env: []string{"LC_ALL=C"}, Limit: maxOutput})
	return output{command.Text(r.Out), command.Text(r.Err), r.Code}, err
}

// must runs a program whose failure is the function's failure.
func (h *host) must(ctx context.Context, argv ...string) error {
	o, err := h.run(ctx, "", argv...)
	if err != nil {
		return err
	}
	if o.Code != 0 {
		return failed(o, argv...)
	}
	return nil
}

func failed(o output, argv ...string) error {
	said := strings.TrimSpace(o.Err + o.Out)
	return fault.Conflict("command_failed", "%s ended with code %d: %s", strings.Join(argv, " "), o.Code, module.Valid(said[:min(len(said), 4096)]))
}
