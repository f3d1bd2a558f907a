package repo

import (
	"context"

	"drover/internal/db"
	"drover/internal/fault"
)

// TreeFile is a file of a snapshot as it lies below its tree.
type TreeFile struct {
	Tree   string `json:"tree"`
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	Mtime  int64  `json:"mtime,omitempty"` // seconds since 1970
}

// Files lists every file of a snapshot, of one tree or of all for "".
func (s *Store) Files(ctx context.Context, ref, name string) ([]TreeFile, error) {
	out := []TreeFile{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		sn, err := s.getSnapshot(tx, ref)
		if err != nil {
			return err
		}
		ts, err := s.treesOfSnapshot(tx, sn.ID)
		if err != nil {
			return err
		}
		for _, t := range ts {
			if name != "" && name != t.name {
				continue
			}
			for _, c := range t.chunks {
				ms, err := s.membersTx(tx, c)
				if err != nil {
					return err
				}
				for _, m := range ms {
					out = append(out, TreeFile{t.name, m.Href, m.Size, m.PkgID, m.Mtime})
				}
			}
			for _, f := range t.files {
				out = append(out, TreeFile{t.name, f.Path, f.Size, f.Sum, 0})
			}
		}
		if len(out) == 0 && name != "" {
			return fault.NotFound("tree_unknown", "the snapshot %.12s has no repository %.100q", sn.ID, name).Fix("see `drover snapshot show %.12s`", sn.ID)
		}
		return nil
	})
	return out, err
}
