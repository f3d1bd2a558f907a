package system

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

const maxOutput = 8 << 20 // of one program

// machine is where the functions look and act. Tests give it another root, bus and clock.
type machine struct {
	root string // "/" on a host
	now  func() time.Time
	bus  func(ctx context.Context) (*busConn, error)
	run  func(ctx context.Context, argv ...string) (output, error)

	mu      sync.Mutex
	probing map[string]bool // network file systems that are being asked, guarded by mu
}

// output is what a program left behind.
type output struct {
	Out, Err string
	Code     int
}

func newMachine() *machine {
	return &machine{root: "/", now: time.Now, bus: systemBus, run: program, probing: map[string]bool{}}
}

// Functions are the functions of service, sysctl, mount, disk, kmod, selinux, status, ps, system,
// timezone, locale, lvm and smbios.
func Functions() []module.Function { return newMachine().functions() }

func (m *machine) functions() []module.Function {
	var all []module.Function
	for _, fs := range [][]module.Function{m.service(), m.sysctl(), m.mounts(), m.disk(), m.kmod(), m.selinux(),
		m.status(), m.ps(), m.power(), m.timezone(), m.locale(), m.lvm(), m.smbios()} {
		all = append(all, fs...)
	}
	return all
}

// path is p on the machine.
func (m *machine) path(p string) string { return filepath.Join(m.root, p) }

// real tells whether the machine is the one that the process runs on.
func (m *machine) real() bool { return m.root == "/" }

// read is a file of the machine, whole and bounded, for what is shown.
func (m *machine) read(p string) (string, error) {
	s, err := module.ReadFile(m.path(p))
	return module.Valid(s), err
}

// text is a file of the machine without white space around it, "" when it cannot be read: for
// facts that a kernel may or may not offer.
func (m *machine) text(p string) string {
	s, err := m.read(p)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.TrimRight(s, "\x00"))
}

// lines are the lines of a file of the machine.
func (m *machine) lines(p string) ([]string, error) {
	s, err := m.read(p)
	return module.Lines(s), err
}

func (m *machine) exists(p string) bool {
	_, err := os.Stat(m.path(p))
	return err == nil
}

// program runs a program, which ends with ctx.
func program(ctx context.Context, argv ...string) (output, error) {
	r, err := command.Run(ctx, command.Spec{Argv: argv, Env: []string{"LC_ALL=C"}, Dir: "/", Limit: maxOutput})
	return output{command.Text(r.Out), command.Text(r.Err), r.Code}, err
}

// must runs a program whose failure is the function's failure.
func (m *machine) must(ctx context.Context, argv ...string) (string, error) {
	o, err := m.run(ctx, argv...)
	if err != nil {
		return "", err
	}
	if o.Code != 0 {
		return "", failed(argv, o)
	}
	return o.Out, nil
}

func failed(argv []string, o output) error {
	return fault.Conflict("command_failed", "%s ended with code %d: %s", strings.Join(argv, " "), o.Code, said(o))
}

// said is what a program said about its failure.
func said(o output) string {
	s := strings.TrimSpace(o.Err)
	if s == "" {
		s = strings.TrimSpace(o.Out)
	}
	if len(s) > 4096 {
		s = module.Valid(s[len(s)-4096:])
	}
	return s
}

func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		if u, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64); err == nil {
			return int64(min(u, 1<<63-1)) // counters of 64 bits without a sign
		}
		return 0
	}
	return n
}

// field is one column of a line, "" when it is shorter.
func field(f []string, i int) string {
	if i < 0 || i >= len(f) {
		return ""
	}
	return f[i]
}

// restTexts are the arguments by position as texts.
func restTexts(c *module.Call) []string {
	var out []string
	for _, v := range c.Rest {
		switch x := v.(type) {
		case []any:
			for _, e := range x {
				out = append(out, module.Text(e))
			}
		default:
			out = append(out, module.Text(x))
		}
	}
	return out
}
