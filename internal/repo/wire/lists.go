package wire

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"drover/internal/rpm"
)

// Variables of dnf by which a host chooses: files of /etc/dnf/vars. dnf leaves a variable that
// is not set as it stands, so these texts mean that nothing was chosen.
const (
	VarSnapshot = "$drover_snapshot"
	VarRing     = "$drover_ring"
)

// Choice is what a host's variables choose, "" each when they are not set.
type Choice struct{ Snapshot, Ring string }

// ChoiceOf reads the choice in the address of a list.
func ChoiceOf(r *http.Request) Choice {
	q := r.URL.Query()
	c := Choice{q.Get("snapshot"), q.Get("ring")}
	if c.Snapshot == VarSnapshot {
		c.Snapshot = ""
	}
	if c.Ring == VarRing {
		c.Ring = ""
	}
	return c
}

// Channel is the channel that a host of the ring follows: another stage of the line, or the
// channel NAME-RING.
func (c Choice) Channel(name string) string {
	switch line, _, staged := strings.Cut(name, "/"); {
	case c.Ring == "":
		return name
	case staged:
		return line + "/" + c.Ring
	default:
		return name + "-" + c.Ring
	}
}

// Pinned is the address, below base, of a tree that stays what it is in a snapshot.
func Pinned(base, channel, snapshot, tree string) string {
	return base + "/channels/" + channel + "/at/" + snapshot + "/" + tree + "/"
}

// GoodHost tells whether a host may stand in a file that is made.
func GoodHost(host string) bool {
	return host != "" && !strings.ContainsAny(host, " \t\n\r\"'<>&$;#%\\`")
}

// Base is the address by which the client came.
func Base(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// Metalink writes the metalink of a tree: of its repomd.xml and those of earlier states, the
// present one first, and where the present one is.
func Metalink(repomds [][]byte, root string) ([]byte, error) {
	m := rpm.Metalink{Mirrors: []rpm.MetalinkMirror{{Root: root, Preference: 100}}}
	for i, b := range repomds {
		short, long := sha256.Sum256(b), sha512.Sum512(b)
		f := rpm.MetalinkFile{Size: int64(len(b)), Sums: map[string]string{"sha256": hex.EncodeToString(short[:]), "sha512": hex.EncodeToString(long[:])}}
		ds, err := rpm.ReadRepomd(b)
		if err != nil {
			return nil, err
		}
		for _, d := range ds {
			f.Time = max(f.Time, d.Time)
		}
		switch {
		case i == 0:
			m.Current = f
		case f.Sums["sha512"] != m.Current.Sums["sha512"]:
			m.Alternates = append(m.Alternates, f)
		}
	}
	return m.XML(), nil
}

// Part is a repository of a channel's .repo file: of a tag or mirror that has the name "", or of
// a part of a line.
type Part struct {
	Name   string
	Key    string // its keys' names, or where those are, with spaces between; "" when nothing is signed
	Signed bool   // its metadata is signed too
}

// Parts are the repositories that a channel's .repo file has, each with the name of its key: one
// for a tag or mirror, for a stage of a line one for each part.
func Parts(channel string, ts []Tree) (out []Part) {
	for _, t := range ts {
		part := ""
		if i := strings.LastIndexByte(t.Name, '.'); i >= 0 {
			part = t.Name[:i]
		} else if strings.Contains(channel, "/") {
			continue
		}
		if !slices.ContainsFunc(out, func(p Part) bool { return p.Name == part }) {
			out = append(out, Part{part, JoinKeys(t.Pins, t.Key), t.Signer() != ""})
		}
	}
	if out == nil {
		out = []Part{{}}
	}
	return out
}

// Keyed gives the parts with where their keys are instead of their names.
func Keyed(parts []Part, where func(key string) string) []Part {
	out := slices.Clone(parts)
	for i, p := range out {
		keys := strings.Fields(p.Key)
		for j, k := range keys {
			keys[j] = where(k)
		}
		out[i].Key = strings.Join(keys, " ")
	}
	return out
}

// RepoFile writes the .repo file of a channel for the arch that dnf puts in. A stage of a line
// has a repository for each of its parts.
//
// A metalink says in one small request whether anything is new, so a host looks each time: what
// is published is there for everybody at once. It names the tree of one snapshot, because dnf
// reads repomd.xml and its signature by two requests, and a channel may move between them.
func RepoFile(base, channel string, parts []Part) []byte {
	var b bytes.Buffer
	id := strings.ReplaceAll(channel, "/", "-")
	for _, p := range parts {
		before, suffix, title := "", "", ""
		if p.Name != "" {
			before, suffix, title = p.Name+".", "-"+p.Name, " "+p.Name
		}
		signed := "gpgcheck=0\nrepo_gpgcheck=0\n"
		if p.Key != "" {
			signed = "gpgcheck=1\nrepo_gpgcheck=0\ngpgkey=" + p.Key + "\n"
			if p.Signed {
				signed = strings.Replace(signed, "repo_gpgcheck=0", "repo_gpgcheck=1", 1)
			}
		}
		for _, v := range []struct{ suffix, tree, title, enabled string }{{"", "$basearch", "", "1"}, {"-debug", "$basearch-debug", " (debug)", "0"}, {"-source", "source", " (source)", "0"}} {
			fmt.Fprintf(&b, "[%s%s%s]\nname=%s%s%s\nmetalink=%s/channels/%s/%s%s/metalink?snapshot=%s&ring=%s\nenabled=%s\n%smetadata_expire=1\ncountme=1\n\n",
				id, suffix, v.suffix, channel, title, v.title, base, channel, before, v.tree, VarSnapshot, VarRing, v.enabled, signed)
		}
	}
	return b.Bytes()
}
