package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"drover/internal/db"
	"drover/internal/rpm"
)

// Verdict is what the gate says of a move.
type Verdict struct {
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
	Broken   int       `json:"broken,omitempty"` // packages that could not be installed before either
}

// Finding is one thing that a move would make worse.
type Finding struct {
	Kind    string `json:"kind" doc:"missing, unsigned, twice, broken, conflict, downgrade"`
	Package string `json:"package"`
	Tree    string `json:"tree,omitempty"`
	Text    string `json:"text"`
}

// maxFindings bounds what a verdict tells; the rest is as bad.
const maxFindings = 200

// gate compares what a channel has with what it would have: is everything there and signed,
// does what could be installed stay so, do files get in each other's way, does no version go
// down. It looks at what differs.
func (s *Store) gate(ctx context.Context, old, now []*tree) (v Verdict, err error) {
	v.Findings = []Finding{}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		removed, added, err := s.differTrees(tx, old, now)
		if err != nil {
			return err
		}
		fresh := map[string]Package{}
		for h, p := range added {
			if _, was := removed[h]; !was {
				fresh[h] = p
			}
		}
		v.Findings = append(v.Findings, s.gatePresent(now, fresh)...)
		return nil
	})
	if err != nil {
		return v, err
	}
	slices.SortFunc(v.Findings, func(a, b Finding) int {
		return strings.Compare(a.Kind+a.Tree+a.Package+a.Text, b.Kind+b.Tree+b.Package+b.Text)
	})
	v.Findings = slices.Compact(v.Findings)
	v.Findings = v.Findings[:min(len(v.Findings), maxFindings)]
	v.OK = len(v.Findings) == 0
	return v, nil
}

// gatePresent finds packages that are not here yet, not signed, or there twice with different
// content.
func (s *Store) gatePresent(now []*tree, fresh map[string]Package) (out []Finding) {
	signs := slices.ContainsFunc(now, func(t *tree) bool { return t.key != "" })
	content := map[string]string{}
	for h, p := range fresh {
		if p.Core == "" {
			out = append(out, Finding{Kind: "missing", Package: p.NEVRA, Text: fmt.Sprintf("%s is known by its mirror's metadata only; it is not fetched yet", p.NEVRA)})
		} else if signs && p.Key == "" && !s.isSigned(p) {
			out = append(out, Finding{Kind: "unsigned", Package: p.NEVRA, Text: p.NEVRA + " has no signature"})
		}
		if other, twice := content[p.NEVRA]; twice && other != h {
			out = append(out, Finding{Kind: "twice", Package: p.NEVRA, Text: fmt.Sprintf("%s is there twice with different content", p.NEVRA)})
		}
		content[p.NEVRA] = h
	}
	return out
}

// isSigned tells whether a package carries an OpenPGP signature of anybody.
func (s *Store) isSigned(p Package) bool {
	r, size, c, err := s.open(p.Head, p.Core)
	if err != nil {
		return false
	}
	defer c.Close()
	q, err := rpm.Read(r, size)
	return err == nil && len(q.Signatures()) > 0
}
