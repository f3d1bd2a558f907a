package modules

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// Docs is the documents of a modules.yaml.
type Docs []Doc

// Doc is one document: a build of a stream of a module, or what is said of a module.
type Doc struct {
	Kind    string // one of the kinds below
	Name    string
	Stream  string // empty in defaults
	Version uint64 // of a build of a stream
	Context string
	Arch    string
	// Modified tells which of two documents on the same is the newer: of defaults,
	// translations and obsoletes.
	Modified  uint64
	Artifacts []string // NEVRAs of a build, sources among them
	// Text is the document as its author wrote it, without the marks around it.
	Text []byte
}

// Kinds of documents.
const (
	KindStream       = "modulemd"
	KindDefaults     = "modulemd-defaults"
	KindObsoletes    = "modulemd-obsoletes"
	KindTranslations = "modulemd-translations"
)

// Bounds of modules.yaml: AppStream 8's has 5 MiB and 600 documents.
const (
	maxModules   = 64 << 20
	maxModuleDoc = 2 << 20
	maxModuleN   = 20_000
)

// moduleYAML is what is read of a document.
type moduleYAML struct {
	Document string    `yaml:"document"`
	Version  int       `yaml:"version"`
	Data     yaml.Node `yaml:"data"`
}

type moduleData struct {
	Name      string `yaml:"name"`
	Module    string `yaml:"module"` // the name, in all kinds but streams
	Stream    string `yaml:"stream"`
	Version   uint64 `yaml:"version"`
	Context   string `yaml:"context"`
	Arch      string `yaml:"arch"`
	Modified  string `yaml:"modified"` // a number, or a time
	Artifacts struct {
		RPMs []string `yaml:"rpms"`
	} `yaml:"artifacts"`
}

// Read reads a modules.yaml, compressed or not, of at most 64 MiB. Documents of other
// kinds than the four are passed over. Aliases are refused: one line could stand for many. Errors
// have code repodata.
func Read(r io.Reader) (Docs, error) {
	in, done, err := rpm.Open(r)
	if err != nil {
		return nil, err
	}
	defer done()
	b, err := io.ReadAll(io.LimitReader(in, maxModules+1))
	switch {
	case err != nil:
		return nil, bad("modules that cannot be read").Wrap(err)
	case len(b) > maxModules:
		return nil, bad("modules of over %d bytes", maxModules)
	case !utf8.Valid(b):
		return nil, bad("modules that are no UTF-8")
	}
	var out Docs
	for doc := range documents(b) {
		if len(out) == maxModuleN {
			return nil, bad("modules of over %d documents", maxModuleN)
		}
		m, ok, err := readModule(doc)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, m)
		}
	}
	return out, nil
}

// documents gives the documents of a stream that hold anything. A mark at the start of a line
// ends a document whatever is open in it, by the rules of YAML.
func documents(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		from, start := 0, true
		for at := 0; at < len(b); {
			rest := b[at:]
			if start && (bytes.HasPrefix(rest, []byte("---")) || bytes.HasPrefix(rest, []byte("..."))) {
				if after := rest[3:]; len(after) == 0 || after[0] == ' ' || after[0] == '\t' || lineBreak(after) > 0 {
					if doc := bytes.TrimSpace(b[from:at]); len(doc) > 0 && !yield(b[from:at]) {
						return
					}
					from = at + 3 // what follows the mark belongs to the document
				}
			}
			n := lineBreak(rest)
			start = n > 0
			at += max(n, 1)
		}
		if doc := bytes.TrimSpace(b[from:]); len(doc) > 0 {
			yield(b[from:])
		}
	}
}

// lineBreak is the length of the line break that b begins with, or 0. YAML has five of them
// (YAML 1.1, 5.4); of CR LF this is the CR.
func lineBreak(b []byte) int {
	switch b[0] {
	case '\n', '\r':
		return 1
	case 0xc2, 0xe2:
		for _, nl := range []string{"\u0085", "\u2028", "\u2029"} {
			if bytes.HasPrefix(b, []byte(nl)) {
				return len(nl)
			}
		}
	}
	return 0
}

func bad(format string, args ...any) *fault.Error {
	return fault.Invalid("repodata", "bad repository metadata: "+format, args...).Fix("the repository is broken or hostile; try it again later or another mirror of it")
}

func unreadable(err error) error {
	return bad("a document on modules that cannot be read").Wrap(err)
}

func readModule(b []byte) (m Doc, ok bool, err error) {
	if len(b) > maxModuleDoc {
		return m, false, bad("a document on modules of %d bytes", len(b))
	}
	if !bytes.Contains(b, []byte("document")) {
		return m, false, bad("a document on modules that does not tell its kind")
	}
	var root yaml.Node
	if err := yaml.Unmarshal(b, &root); err != nil {
		return m, false, unreadable(err)
	}
	if hasAlias(&root) {
		return m, false, bad("a document on modules with aliases")
	}
	var doc moduleYAML
	if err := root.Decode(&doc); err != nil {
		return m, false, unreadable(err)
	}
	switch doc.Document {
	case KindStream, KindDefaults, KindObsoletes, KindTranslations:
	default:
		return m, false, nil
	}
	var d moduleData
	if err := doc.Data.Decode(&d); err != nil {
		return m, false, unreadable(err)
	}
	m = Doc{Kind: doc.Document, Name: d.Name, Stream: d.Stream, Version: d.Version, Context: d.Context, Arch: d.Arch, Artifacts: d.Artifacts.RPMs, Text: bytes.TrimRight(bytes.TrimLeft(b, "\r\n"), " \t\r\n")}
	if m.Kind != KindStream {
		m.Name = d.Module
		digits := strings.Map(func(r rune) rune { // a time: "2020-05-09T01:02Z"
			if strings.ContainsRune("-:TZ", r) {
				return -1
			}
			return r
		}, d.Modified)
		if m.Modified, err = strconv.ParseUint(cmp.Or(digits, "0"), 10, 64); err != nil {
			return m, false, unreadable(err)
		}
	}
	if m.Kind == KindDefaults {
		m.Stream = "" // the default one: not what the document is on
	}
	if m.Name == "" || m.Kind != KindDefaults && m.Stream == "" {
		return m, false, bad("a document on modules without a name or stream")
	}
	return m, true, nil
}

func hasAlias(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || n.Anchor != "" || slices.ContainsFunc(n.Content, hasAlias)
}

// key is what no two documents of a stream may have in common.
func (m Doc) key() string {
	return fmt.Sprintf("%q %d %q %d %q %q", m.Name, slices.Index([]string{KindDefaults, KindStream, KindTranslations, KindObsoletes}, m.Kind), m.Stream, m.Version, m.Context, m.Arch)
}

// String names a document.
func (m Doc) String() string {
	s := m.Name
	if m.Stream != "" {
		s += ":" + m.Stream
	}
	if m.Kind == KindStream {
		return fmt.Sprintf("%s:%d:%s:%s", s, m.Version, m.Context, m.Arch)
	}
	return m.Kind + " of " + s
}

// YAML writes the documents in an order of their own: the same ones give the same bytes.
func (ms Docs) YAML() []byte {
	sorted := slices.Clone(ms)
	slices.SortStableFunc(sorted, func(a, b Doc) int {
		rank := func(m Doc) int {
			return slices.Index([]string{KindDefaults, KindStream, KindTranslations, KindObsoletes}, m.Kind)
		}
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(rank(a), rank(b)), strings.Compare(a.Stream, b.Stream), cmp.Compare(a.Version, b.Version), strings.Compare(a.Context, b.Context),
			strings.Compare(a.Arch, b.Arch), cmp.Compare(a.Modified, b.Modified), bytes.Compare(a.Text, b.Text))
	})
	var out []byte
	for _, m := range sorted {
		out = append(append(append(out, "---\n"...), m.Text...), "\n...\n"...)
	}
	return out
}

// Merge makes one stream of documents of several, as libmodulemd does where it can:
//
//   - builds of one name, stream, version, context and arch are one, with the artifacts of all:
//     repositories name the artifacts that they have. Where they differ in anything else, the
//     earlier one counts and the build is named among the conflicts;
//   - of defaults, translations and obsoletes on the same, the one modified later counts;
//   - defaults modified at the same time are joined. Where they name different default streams, or
//     different profiles for one stream, there is no default.
func Merge(all ...Docs) (out Docs, conflicts []string, err error) {
	// All on one thing at once: what is joined one by one is read again and again.
	var keys []string
	on := map[string]Docs{}
	for _, ms := range all {
		for _, m := range ms {
			k := m.key()
			have, ok := on[k]
			switch {
			case !ok:
				keys = append(keys, k)
				on[k] = Docs{m}
			case m.Modified > have[0].Modified:
				on[k] = Docs{m}
			case m.Modified == have[0].Modified:
				on[k] = append(have, m)
			}
		}
	}
	for _, k := range keys {
		same := on[k]
		m, conflict := same[0], false
		if slices.ContainsFunc(same, func(o Doc) bool { return !bytes.Equal(o.Text, m.Text) }) {
			switch m.Kind {
			case KindStream:
				m, conflict, err = joinBuilds(same)
			case KindDefaults:
				m, conflict, err = joinDefaults(same)
			default:
				conflict = true
			}
			if err != nil {
				return nil, nil, err
			}
		}
		out = append(out, m)
		if conflict {
			conflicts = append(conflicts, m.String())
		}
	}
	slices.Sort(conflicts)
	return out, conflicts, nil
}

// joinBuilds is the first document with the artifacts of all that are the same build.
func joinBuilds(same Docs) (m Doc, conflict bool, err error) {
	m = same[0]
	rest := func(text []byte) (doc map[string]any, err error) {
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return nil, unreadable(err)
		}
		if data, ok := doc["data"].(map[string]any); ok {
			delete(data, "artifacts")
		}
		return doc, nil
	}
	first, err := rest(m.Text)
	if err != nil {
		return m, false, err
	}
	all := slices.Clip(m.Artifacts)
	for _, o := range same[1:] {
		theirs, err := rest(o.Text)
		if err != nil {
			return m, false, err
		}
		if !reflect.DeepEqual(first, theirs) {
			conflict = true
			continue
		}
		all = append(all, o.Artifacts...)
	}
	sorted := func(l []string) []string { return slices.Compact(slices.Sorted(slices.Values(l))) }
	if all = sorted(all); slices.Equal(all, sorted(m.Artifacts)) {
		return m, conflict, nil
	}
	m.Artifacts = all
	var root, list yaml.Node
	if err := yaml.Unmarshal(m.Text, &root); err != nil {
		return m, false, unreadable(err)
	}
	data := child(root.Content[0], "data")
	if data == nil {
		return m, false, unreadable(errors.New("no data"))
	}
	if err := list.Encode(map[string]any{"rpms": m.Artifacts}); err != nil {
		return m, false, unreadable(err)
	}
	if old := child(data, "artifacts"); old != nil {
		*old = list
	} else {
		data.Content = append(data.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "artifacts"}, &list)
	}
	m.Text, err = encodeYAML(&root)
	return m, conflict, err
}

// child is the value of a key of a mapping, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func encodeYAML(v any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, unreadable(err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// defaultsYAML is a document of defaults. Intents, which no client looks at, are not kept where
// documents are joined.
type defaultsYAML struct {
	Document string `yaml:"document"`
	Version  int    `yaml:"version"`
	Data     struct {
		Module   string              `yaml:"module"`
		Modified uint64              `yaml:"modified,omitempty"`
		Stream   string              `yaml:"stream,omitempty"`
		Profiles map[string][]string `yaml:"profiles,omitempty"`
	} `yaml:"data"`
}

func joinDefaults(same Docs) (m Doc, conflict bool, err error) {
	m = same[0]
	var out defaultsYAML
	if err := yaml.Unmarshal(m.Text, &out); err != nil {
		return m, false, unreadable(err)
	}
	if out.Data.Profiles == nil {
		out.Data.Profiles = map[string][]string{}
	}
	noStream, noProfiles := false, map[string]bool{} // what was in conflict stays so
	for _, o := range same[1:] {
		var d defaultsYAML
		if err := yaml.Unmarshal(o.Text, &d); err != nil {
			return m, false, unreadable(err)
		}
		switch stream := d.Data.Stream; {
		case noStream || stream == "" || stream == out.Data.Stream:
		case out.Data.Stream == "":
			out.Data.Stream = stream
		default:
			out.Data.Stream, noStream = "", true
		}
		for stream, profiles := range d.Data.Profiles {
			slices.Sort(profiles)
			have, ok := out.Data.Profiles[stream]
			switch {
			case !ok:
				out.Data.Profiles[stream] = profiles
			case !noProfiles[stream] && !slices.Equal(slices.Sorted(slices.Values(have)), profiles):
				out.Data.Profiles[stream], noProfiles[stream] = []string{}, true
			}
		}
	}
	m.Text, err = encodeYAML(out)
	return m, noStream || len(noProfiles) > 0, err
}

// Filter keeps the builds of which a package is there, and what is said of modules and streams
// that are left.
func (ms Docs) Filter(has func(rpm.NEVRA) bool) Docs {
	streams := map[string]bool{} // "name" and "name:stream"
	keep := make([]bool, len(ms))
	for i, m := range ms {
		if m.Kind != KindStream {
			continue
		}
		keep[i] = slices.ContainsFunc(m.Artifacts, func(s string) bool {
			n, err := rpm.ParseNEVRA(s)
			return err == nil && n.Arch != "src" && has(n)
		})
		if keep[i] {
			streams[m.Name], streams[m.Name+":"+m.Stream] = true, true
		}
	}
	var out Docs
	for i, m := range ms {
		if keep[i] || m.Kind == KindDefaults && streams[m.Name] || m.Kind != KindStream && m.Kind != KindDefaults && streams[m.Name+":"+m.Stream] {
			out = append(out, m)
		}
	}
	return out
}

// Uncovered is those packages that no build of a module names. Clients refuse to install a
// package with a label of a module (the tag Modularity) that no document covers, or take it for
// one of none: such packages must not be published.
func (ms Docs) Uncovered(labeled []rpm.NEVRA) []rpm.NEVRA {
	covered := map[rpm.NEVRA]bool{}
	for _, m := range ms {
		for _, a := range m.Artifacts {
			if n, err := rpm.ParseNEVRA(a); err == nil {
				covered[n] = true
			}
		}
	}
	var out []rpm.NEVRA
	for _, n := range labeled {
		if !covered[n] {
			out = append(out, n)
		}
	}
	return out
}
