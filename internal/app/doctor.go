package app

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/sandbox"
	"drover/internal/sign"
)

type doctorVerb struct {
	Dir string `help:"Directory whose file system is tried; a temporary one when not given." type:"path"`
}

// finding is one thing that doctor looked at.
type finding struct {
	Part  string `json:"part"` // server, builder, signer
	What  string `json:"what"`
	State string `json:"state"` // ok, missing, or what was found
	Why   string `json:"why,omitempty"`
}

// Run looks at this machine.
func (v doctorVerb) Run(e *cli.Env) error {
	var out []finding
	missing := 0
	tool := func(part, name, why string) {
		f := finding{Part: part, What: name, State: "ok"}
		if _, err := exec.LookPath(name); err != nil {
			f.State, f.Why = "missing", why
			missing++
		}
		out = append(out, f)
	}
	tool("server", "git", "install git: it serves the packs of repositories")
	tool("builder", "dnf", "install dnf: it makes buildroots")
	tool("builder", "rpm", "install rpm: it lists what is in a buildroot")
	tool("builder", "cp", "install coreutils")
	if os.Getuid() != 0 {
		out = append(out, finding{"builder", "root", "missing", "a builder runs as root: it mounts overlays and makes namespaces; builds themselves run as a plain user"})
		missing++
	} else {
		dir := v.Dir
		if dir == "" {
			d, err := os.MkdirTemp("", "drover-doctor-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(d)
			dir = d
		}
		box, err := sandbox.New(sandbox.Config{StateDir: filepath.Join(dir, "doctor-roots"), Log: logger(io.Discard, false), Now: time.Now})
		if err != nil {
			return err
		}
		defer os.RemoveAll(filepath.Join(dir, "doctor-roots"))
		r := box.Probe(e.Ctx)
		f := finding{Part: "builder", What: "sandbox", State: fmt.Sprintf("%s; memory by %s, processes by %s, disk by %s", r.Runtime, r.Memory, r.Pids, r.Disk)}
		if r.Problem != "" {
			f.State, f.Why = "missing", r.Problem
			missing++
		}
		out = append(out, f)
	}
	// A server that runs tells whether its signer does.
	var signing sign.Status
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/signing", nil, &signing); err == nil {
		f := finding{Part: "signer", What: "process", State: "ok"}
		if !signing.Here {
			f.State, f.Why = "missing", signing.String()
			missing++
		}
		out = append(out, f)
	}
	err := e.Show(out, func(w io.Writer) {
		cli.Table(w, "PART WHAT STATE WHY", func(row func(...any)) {
			for _, f := range out {
				row(f.Part, f.What, f.State, f.Why)
			}
		})
	})
	if err == nil && missing > 0 {
		return fault.Unavailable("machine", "%d things are missing on this machine", missing).Fix("scripts/setup installs them on Debian 12 and CentOS Stream")
	}
	return err
}
