package app

import (
	"context"
	"fmt"
	"io"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/web"
)

// blobVerbs is `drover blob`.
type blobVerbs struct {
	Scrub blobScrub `cmd:"" help:"Read every stored blob and compare it with its digest." example:"drover blob scrub"`
}

// blobReport is what reading the whole store found.
type blobReport struct {
	Blobs    int64         `json:"blobs"`
	Bytes    int64         `json:"bytes"`
	Problems []blobProblem `json:"problems"`
}

type blobProblem struct {
	Kind blob.ProblemKind `json:"kind"`
	Path string           `json:"path"`
	Why  string           `json:"why,omitempty"`
}

// maxProblems bounds the report; a store with more than that is broken as a whole.
const maxProblems = 1000

func (s *Server) auditBlobs() {
	web.Route(s.Web, web.Op{Method: "POST", Path: "/api/v1/blobs/scrub", ID: "blob-scrub", Summary: "Read every stored blob and compare it with its digest", Tag: "audit"},
		func(ctx context.Context, _ *struct{}) (r blobReport, err error) {
			if err := auth.Need(ctx, "audit.verify", "blobs"); err != nil {
				return r, err
			}
			r.Problems = []blobProblem{}
			done, err := s.Blobs.Scrub(ctx, func(p blob.Problem) {
				if len(r.Problems) == maxProblems {
					return
				}
				q := blobProblem{Kind: p.Kind, Path: p.Path}
				if p.Err != nil {
					q.Why = fault.As(p.Err).Msg
				}
				r.Problems = append(r.Problems, q)
			})
			r.Blobs, r.Bytes = done.Blobs, done.Bytes
			return r, err
		})
}

type blobScrub struct{}

// Run has the server read its blobs.
func (blobScrub) Run(e *cli.Env) error {
	var r blobReport
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/blobs/scrub", nil, &r); err != nil {
		return err
	}
	err := e.Show(r, func(w io.Writer) {
		for _, p := range r.Problems {
			fmt.Fprintf(w, "%-10s %s  %s\n", p.Kind, p.Path, p.Why)
		}
		fmt.Fprintf(w, "%d blobs, %s, %d problems\n", r.Blobs, web.Bytes(r.Bytes), len(r.Problems))
	})
	if err == nil && len(r.Problems) > 0 {
		return fault.Conflict("blobs_damaged", "%d of the files in the store are not what they should be", len(r.Problems)).
			Fix("damaged: bring the blob back from a backup, or put the same bytes again; leftover and misplaced: remove the file")
	}
	return err
}
