package teststream

import (
	"fmt"
	"io"

	"drover/internal/cli"
)

// Verb is `drover dev teststream`.
type Verb struct {
	Dir   string `arg:"" help:"Where the repository goes. One made before is replaced; a directory that holds anything else is left alone." type:"path"`
	Set   Set    `default:"build" enum:"base,build,boot,all" help:"What to make. base: a root with a shell and the usual tools; build: a root in which rpmbuild works; boot: a machine with kernel, systemd, sshd and dnf; all: all of them."`
	Cache string `help:"Where downloads and made packages are kept; it may be removed at any time (~/.cache/drover/teststream)." type:"path"`
}

// Run makes the distribution.
func (v Verb) Run(e *cli.Env) error {
	res, err := Make(e.Ctx, Config{Dir: v.Dir, Set: v.Set, Cache: v.Cache, Say: e.Say})
	if err != nil {
		return err
	}
	return e.Show(res, func(w io.Writer) { fmt.Fprintf(w, "%s: %d packages, %d MiB\n", res.Dir, res.Packages, res.Bytes>>20) })
}
