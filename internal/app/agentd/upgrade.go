package agentd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/agent/rpmdb"
	"drover/internal/durable"
	"drover/internal/fault"
)

// An upgrade of the agent, in DIR/upgrade.json, as long as it is not known to be good. The old
// program keeps a copy of itself and a timer of systemd's that starts it again: unless the new one
// was welcomed by the server in the meantime, the copy puts the old package back.
type upgrade struct {
	From  string    `json:"from"` // NEVRA
	To    string    `json:"to"`
	Until time.Time `json:"until"`
	Good  bool      `json:"good"` // the new one was welcomed
}

const returnUnit = "drover-agent-return"

var reVersion = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._+~^:-]{0,100}$`)

func upgradeFile(dir string) string { return filepath.Join(dir, "upgrade.json") }

func readUpgrade(dir string) (u upgrade, err error) {
	b, err := os.ReadFile(upgradeFile(dir))
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	return u, err
}

func writeUpgrade(dir string, u upgrade) error {
	b, err := json.Marshal(u)
	if err != nil {
		return err
	}
	return durable.WriteFile(upgradeFile(dir), b, 0o600)
}

// confirm takes note that this program was welcomed: an upgrade to it has gone well.
func confirm(dir string) error {
	u, err := readUpgrade(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && u.Good {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := installedAgent(context.Background())
	if err != nil || now == u.From { // the old one, before it was replaced
		return err
	}
	u.Good = true
	return writeUpgrade(dir, u)
}

// installedAgent is the NEVRA of the agent's package.
func installedAgent(ctx context.Context) (string, error) {
	ps, err := rpmdb.List(ctx, "/")
	if err != nil {
		return "", err
	}
	for _, p := range ps {
		if p.Name == "drover-agent" {
			return p.NEVRA(), nil
		}
	}
	return "", fault.Unavailable("agent_package", "the agent of this host is not from a package").Fix("install the package drover-agent")
}

// upgradeFunctions are agent.upgrade and agent.version.
func upgradeFunctions() []module.Function {
	return []module.Function{
		{Name: "agent.version", Doc: "The agent's package.\n\nsalt '*' agent.version", Reads: true, Run: func(ctx context.Context, _ *module.Call) (any, error) { return installedAgent(ctx) }},
		{Name: "agent.upgrade", Doc: "Upgrades the agent from the channels of this host; it returns to the old version by itself when the new one does not reach the server.\n\nsalt '*' agent.upgrade\nsalt '*' agent.upgrade version=1.2-1.el10 wait=300",
			Params: []module.Param{{Name: "version", Type: module.Str}, {Name: "wait", Type: module.Int, Default: int64(300)}}, Run: startUpgrade},
	}
}

func startUpgrade(ctx context.Context, c *module.Call) (any, error) {
	v := c.Str("version")
	if v != "" && !reVersion.MatchString(v) {
		return nil, fault.Invalid("argument", "%.100q is no version", v)
	}
	wait := time.Duration(min(max(c.Int("wait"), 30), 3600)) * time.Second
	if u, err := readUpgrade(c.Dir); err == nil && !u.Good && time.Now().Before(u.Until.Add(time.Minute)) {
		return nil, fault.Conflict("upgrade_runs", "an upgrade from %s is not known to be good yet", u.From).Fix("wait until %s", u.Until.Format(time.RFC3339))
	}
	from, err := installedAgent(ctx)
	if err != nil {
		return nil, err
	}
	dnf := func(ctx context.Context, options ...string) (command.Result, error) {
		what := []string{"upgrade", "drover-agent"}
		if v != "" {
			what = []string{"install", "drover-agent-" + v}
		}
		return command.Run(ctx, command.Spec{Argv: slices.Concat([]string{"dnf", "-y", "-q", "--allowerasing"}, options, what), Limit: 1 << 20})
	}
	// What can take long, a slow mirror or another dnf at work, is over before the time begins to run.
	if r, err := dnf(ctx, "--refresh", "--downloadonly"); err != nil || r.Code != 0 {
		return nil, fault.Unavailable("upgrade_failed", "dnf does not fetch the new agent: %.1000s", string(r.Err)).Wrap(err)
	}
	// From here on it is not cut by a stop: dnf would leave two versions, the timer no way back.
	ctx = context.WithoutCancel(ctx)
	run := func(argv ...string) (command.Result, error) {
		return command.Run(ctx, command.Spec{Argv: argv, Limit: 1 << 20})
	}
	keep := filepath.Join(c.Dir, "previous")
	if err := copyProgram(keep); err != nil {
		return nil, err
	}
	if err := writeUpgrade(c.Dir, upgrade{From: from, Until: time.Now().Add(wait)}); err != nil {
		return nil, err
	}
	_, _ = run("systemctl", "stop", returnUnit+".timer") // of an earlier one
	_, _ = run("systemctl", "reset-failed", returnUnit+".service", returnUnit+".timer")
	if r, err := run("systemd-run", "--quiet", "--unit="+returnUnit, "--timer-property=AccuracySec=1s", fmt.Sprintf("--on-active=%ds", int(wait.Seconds())), keep, "return", "--dir", c.Dir); err != nil || r.Code != 0 {
		return nil, errors.Join(fault.Unavailable("upgrade_return", "the way back cannot be laid, so the agent is not upgraded: %.500s", string(r.Err)).Wrap(err), os.Remove(upgradeFile(c.Dir)))
	}
	r, err := dnf(ctx)
	to, terr := installedAgent(ctx)
	if err != nil || terr != nil || r.Code != 0 || to == from {
		_, _ = run("systemctl", "stop", returnUnit+".timer")
		if rerr := os.Remove(upgradeFile(c.Dir)); rerr != nil {
			return nil, rerr
		}
		if err == nil && r.Code == 0 && terr == nil {
			return map[string]any{"from": from, "to": to, "changed": false}, nil
		}
		return nil, fault.Unavailable("upgrade_failed", "dnf does not install the new agent: %.1000s", string(r.Err)).Wrap(errors.Join(err, terr))
	}
	return map[string]any{"from": from, "to": to, "changed": true, "returns": wait.String()}, nil
}

// copyProgram keeps the running program, whatever becomes of the file that it was started from.
func copyProgram(to string) error {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return durable.WriteFile(to, b, 0o700)
}

type returnVerb struct {
	Dir string `required:"" help:"Directory of the agent's state." type:"path"`
}

// Run puts the old agent back unless the new one was welcomed.
func (v returnVerb) Run(e *Env) error {
	u, err := readUpgrade(v.Dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && u.Good {
		return nil
	}
	if err != nil {
		return err
	}
	e.Log.Error("the new agent was not heard of by the server; the old one comes back", "from", u.From)
	r, err := command.Run(e.Ctx, command.Spec{Argv: []string{"dnf", "-y", "-q", "--allowerasing", "downgrade", u.From}, Limit: 1 << 20})
	if err != nil || r.Code != 0 {
		// The channel does not have the old package any more, or cannot be reached: the program alone.
		e.Log.Error("dnf does not bring it back; the program alone is put back", "err", err, "stderr", string(r.Err))
		b, err := os.ReadFile(filepath.Join(v.Dir, "previous"))
		if err == nil {
			err = durable.WriteFile("/usr/bin/drover-agent", b, 0o755)
		}
		if err != nil {
			return err
		}
	}
	u.Good, u.To = true, "returned"
	if err := writeUpgrade(v.Dir, u); err != nil {
		return err
	}
	_, err = command.Run(e.Ctx, command.Spec{Argv: []string{"systemctl", "restart", "drover-agent.service"}, Limit: 1 << 20})
	return err
}
