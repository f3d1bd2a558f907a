package grains

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

const (
	defaultDeadline = 10 * time.Second
	lingering       = time.Second // how long a program's children may hold its output after it
	maxStderr       = 4 << 10
	maxPrograms     = 200
	atOnce          = 4 // programs that run at the same time
)

// siteFiles sorts the site's files into static ones, in the order in which they count, and programs.
func siteFiles(c Config) (static, programs []string, errs []error) {
	for _, f := range c.Files {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			static = append(static, f)
		}
	}
	if c.Dir == "" {
		return static, nil, nil
	}
	es, err := os.ReadDir(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return static, nil, nil
	}
	if err != nil {
		return static, nil, []error{fault.Unavailable("fact_dir", "the directory of facts %s cannot be read", c.Dir).Wrap(err)}
	}
	for _, e := range es {
		name := filepath.Join(c.Dir, e.Name())
		ext := filepath.Ext(name)
		// Files that editors and rpm leave behind are meant for nobody.
		if e.Name()[0] == '.' || strings.HasSuffix(name, "~") || slices.Contains([]string{".rpmnew", ".rpmsave", ".rpmorig", ".swp", ".bak"}, ext) {
			continue
		}
		i, err := os.Stat(name)
		switch {
		case err != nil:
			errs = append(errs, fault.Unavailable("fact_file", "the file of facts %s cannot be read", name).Wrap(err))
		case i.IsDir():
		case ext == ".yaml" || ext == ".yml" || ext == ".json":
			static = append(static, name)
		case !i.Mode().IsRegular() || i.Mode()&0o111 == 0:
			errs = append(errs, fault.Invalid("fact_file", "%s is neither YAML or JSON by its name nor a program", name).Fix("name it *.yaml, or make it executable"))
		case len(programs) == maxPrograms:
			errs = append(errs, fault.TooLarge("fact_file", "%s is not run: %s has over %d programs", name, c.Dir, maxPrograms))
		default:
			programs = append(programs, name)
		}
	}
	return static, programs, errs
}

// trusted refuses files that others than the agent's user may write: their content would run as it.
func trusted(name string) error {
	var s unix.Stat_t
	if err := unix.Stat(name, &s); err != nil {
		return fault.Unavailable("fact_file", "the file of facts %s cannot be read", name).Wrap(err)
	}
	if s.Uid != 0 && s.Uid != uint32(os.Geteuid()) || s.Mode&0o022 != 0 {
		return fault.Denied("fact_unsafe", "%s can be written by others than root, and is not run", name).Fix("chown root %s; chmod go-w %s", name, name)
	}
	return nil
}

// readStatic reads facts of a YAML or JSON file.
func readStatic(name string) (map[string]any, error) {
	dir := &host{root: "/"}
	f, err := dir.open(name)
	if err != nil {
		return nil, fault.Unavailable("fact_file", "the file of facts %s cannot be read", name).Wrap(err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fault.Unavailable("fact_file", "the file of facts %s cannot be read", name).Wrap(err)
	}
	if len(b) > maxFile {
		return nil, fault.TooLarge("fact_large", "the file of facts %s has over %d bytes", name, maxFile)
	}
	facts, err := parseYAML(b)
	if err != nil {
		return nil, fault.Invalid("fact_file", "the file of facts %s is no mapping of names to values", name).Wrap(err).Fix("write lines such as `role: web`")
	}
	return facts, nil
}

// maxNodes and maxDepth bound a document of facts, the nodes of repeated aliases counted each time.
const (
	maxNodes = 50_000
	maxDepth = 32
)

// parseYAML reads one document as Salt's YAML has it: yes and no, on and off are booleans.
func parseYAML(b []byte) (map[string]any, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	if doc.Kind == 0 || len(doc.Content) == 0 {
		return nil, nil // empty, or comments only
	}
	left := maxNodes
	v, err := value(doc.Content[0], &left, maxDepth)
	if err != nil {
		return nil, err
	}
	switch m := v.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return m, nil
	}
	return nil, errors.New("not a mapping")
}

func value(n *yaml.Node, left *int, depth int) (any, error) {
	if *left--; *left < 0 || depth == 0 {
		return nil, errors.New("too large or too deep")
	}
	switch n.Kind {
	case yaml.AliasNode:
		return value(n.Alias, left, depth-1)
	case yaml.SequenceNode:
		out := []any{}
		for _, c := range n.Content {
			v, err := value(c, left, depth-1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			x, err := value(v, left, depth-1)
			if err != nil {
				return nil, err
			}
			if k.Kind == yaml.AliasNode {
				k = k.Alias
			}
			if k.Tag == "!!merge" {
				for _, m := range merged(x) {
					for name, x := range m {
						if _, ok := out[name]; !ok {
							out[name] = x
						}
					}
				}
				continue
			}
			if k.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: a name must be a text", k.Line)
			}
			out[k.Value] = x
		}
		return out, nil
	case yaml.ScalarNode:
		if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
			switch n.Value {
			case "yes", "Yes", "YES", "on", "On", "ON":
				return true, nil
			case "no", "No", "NO", "off", "Off", "OFF":
				return false, nil
			}
		}
		switch n.Tag {
		case "!!null", "!!bool", "!!int", "!!float":
			var v any
			if err := n.Decode(&v); err != nil {
				return nil, err
			}
			return plain(v), nil
		}
		return n.Value, nil // times too: a fact is what somebody wrote
	}
	return nil, fmt.Errorf("line %d: nothing that a fact can be", n.Line)
}

// merged is what a merge key brings: a mapping or several, of which the first counts most.
func merged(v any) (out []map[string]any) {
	switch x := v.(type) {
	case map[string]any:
		return []map[string]any{x}
	case []any:
		for _, e := range x {
			if m, ok := e.(map[string]any); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

// plain makes a value of the types that facts have.
func plain(v any) any {
	switch x := v.(type) {
	case nil, string, bool, int64:
		return x
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Sprint(x) // JSON has no such numbers, and one would lose all other facts
		}
		return x
	case int:
		return int64(x)
	case uint64:
		return float64(x)
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		if f, err := x.Float64(); err == nil {
			return f
		}
		return x.String()
	case []string:
		return texts(x)
	case []any:
		out := make([]any, len(x))
		for i, e := range x {
			out[i] = plain(e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[k] = plain(e)
		}
		return out
	case map[any]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[fmt.Sprint(k)] = plain(e)
		}
		return out
	}
	return fmt.Sprint(v)
}

// result is what a program gave.
type result struct {
	facts map[string]any
	err   error
}

// runAll runs the programs, a few at a time, and waits for all of them.
func runAll(ctx context.Context, programs []string, deadline time.Duration) []result {
	if deadline <= 0 {
		deadline = defaultDeadline
	}
	out := make([]result, len(programs))
	next := make(chan int, len(programs))
	for i := range programs {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range min(atOnce, len(programs)) {
		wg.Go(func() {
			for i := range next {
				out[i].facts, out[i].err = run(ctx, programs[i], deadline)
			}
		})
	}
	wg.Wait()
	return out
}

// bounded keeps the start of what is written to it. Once it is full it fails, if anything is to
// happen then.
type bounded struct {
	buf  bytes.Buffer // not embedded: its ReadFrom knows no bounds
	max  int
	full func()
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.max-b.buf.Len())
	b.buf.Write(p[:n])
	if n < len(p) {
		b.over = true
		if b.full != nil {
			b.full()
			return n, io.ErrShortWrite
		}
	}
	return len(p), nil
}

// run runs a program that prints facts as a JSON object.
func run(ctx context.Context, name string, deadline time.Duration) (map[string]any, error) {
	if err := trusted(name); err != nil {
		return nil, err
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	stdout, stderr := &bounded{max: maxFile, full: cancel}, &bounded{max: maxStderr}
	cmd := exec.CommandContext(ctx, name)
	cmd.Dir = filepath.Dir(name)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	group := func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Cancel, cmd.WaitDelay = group, lingering
	err := cmd.Start()
	if err == nil {
		err = cmd.Wait()
		_ = group() // whatever it left running; as a rule there is nothing
	}
	fail := func(e *fault.Error) (map[string]any, error) {
		if s := strings.TrimSpace(strings.ToValidUTF8(stderr.buf.String(), "\uFFFD")); s != "" {
			e.Msg += "; it said: " + s
		}
		return nil, e
	}
	switch {
	case parent.Err() != nil:
		return nil, parent.Err()
	case stdout.over:
		return fail(fault.TooLarge("fact_large", "the program of facts %s printed over %d bytes and was ended", name, maxFile))
	case ctx.Err() != nil:
		return fail(fault.Unavailable("fact_slow", "the program of facts %s was ended after %s", name, deadline).Fix("make it faster, or have a timer write its facts to a file"))
	case errors.Is(err, exec.ErrWaitDelay): // it has ended well and left a child, which holds its output
	case err != nil:
		return fail(fault.Invalid("fact_program", "the program of facts %s failed", name).Wrap(err))
	}
	d := json.NewDecoder(bytes.NewReader(stdout.buf.Bytes()))
	d.UseNumber()
	var facts map[string]any
	if err := d.Decode(&facts); err != nil {
		return fail(fault.Invalid("fact_program", "the program of facts %s printed no JSON object", name).Wrap(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fail(fault.Invalid("fact_program", "the program of facts %s printed more than one JSON object", name))
	}
	out, _ := plain(facts).(map[string]any)
	return out, nil
}
