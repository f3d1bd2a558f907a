package blob_test

import (
	"testing"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
)

func open(t *testing.T) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, open)
}
