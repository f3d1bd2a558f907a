package accounts

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// A server shows its key, and nobody logs in.
func TestScanKey(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			conf := &ssh.ServerConfig{NoClientAuth: true}
			conf.AddHostKey(signer)
			_, _, _, err = ssh.NewServerConn(conn, conf)
			_ = conn.Close()
		}
		done <- err
	}()
	got, err := scanKey(t.Context(), l.Addr().String(), ssh.KeyAlgoED25519, 5*time.Second)
	if want := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if err := <-done; err == nil {
		t.Error("the server let somebody in")
	}
	// One that accepts and says nothing does not hang the call.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := scanKey(ctx, l.Addr().String(), ssh.KeyAlgoED25519, time.Minute); err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
