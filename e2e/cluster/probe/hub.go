package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A hub of one repository, as Hugging Face serves it: what huggingface_hub and the node agent ask for, and no more.
// Files above a megabyte are outside of git: their addresses redirect to another port, which refuses a token as
// object stores do.
type hub struct {
	repo, token, store string
	files              map[string]file
	mu                 sync.Mutex
	main               string
}

type file struct {
	path, sha1, sha256 string
	size               int64
}

const large = 1 << 20

func serveHub(address, storeAddress, repo, token string, paths []string) {
	h := &hub{repo: repo, token: token, files: map[string]file{}, main: strings.Repeat("a", 40)}
	for _, path := range paths {
		f, err := describe(path)
		if err != nil {
			log.Fatal(err)
		}
		h.files[filepath.Base(path)] = f
	}
	_, port, err := net.SplitHostPort(storeAddress)
	if err != nil {
		log.Fatal(err)
	}
	h.store = port
	go func() { log.Fatal(http.ListenAndServe(storeAddress, http.HandlerFunc(h.fromStore))) }()
	fmt.Println("started")
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(h.answer)))
}

func describe(path string) (file, error) {
	f, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	blob, content := sha1.New(), sha256.New()
	fmt.Fprintf(blob, "blob %d\x00", info.Size())
	if _, err := io.Copy(io.MultiWriter(blob, content), f); err != nil {
		return file{}, err
	}
	return file{path, fmt.Sprintf("%x", blob.Sum(nil)), fmt.Sprintf("%x", content.Sum(nil)), info.Size()}, nil
}

func (h *hub) commit(revision string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if revision == "main" {
		return h.main
	}
	if len(revision) == 40 && strings.Trim(revision, "0123456789abcdef") == "" {
		return revision
	}
	return ""
}

func (h *hub) answer(w http.ResponseWriter, r *http.Request) {
	// Moves main, for tests.
	if commit, found := strings.CutPrefix(r.URL.Path, "/move-main/"); found {
		h.mu.Lock()
		h.main = commit
		h.mu.Unlock()
		return
	}
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		w.Header().Set("X-Error-Code", "RepoNotFound")
		http.Error(w, "Repository not found", http.StatusUnauthorized)
		return
	}
	if rest, found := strings.CutPrefix(r.URL.Path, "/api/models/"+h.repo+"/revision/"); found {
		h.description(w, h.commit(rest))
		return
	}
	if rest, found := strings.CutPrefix(r.URL.Path, "/api/models/"+h.repo+"/tree/"); found {
		h.tree(w, h.commit(rest))
		return
	}
	rest, found := strings.CutPrefix(r.URL.Path, "/"+h.repo+"/resolve/")
	revision, name, _ := strings.Cut(rest, "/")
	if f, known := h.files[name]; found && known && h.commit(revision) != "" {
		h.file(w, r, f, name, h.commit(revision))
		return
	}
	w.Header().Set("X-Error-Code", "EntryNotFound")
	http.NotFound(w, r)
}

func (h *hub) description(w http.ResponseWriter, commit string) {
	if commit == "" {
		w.Header().Set("X-Error-Code", "RevisionNotFound")
		http.Error(w, "Revision not found", http.StatusNotFound)
		return
	}
	siblings := []map[string]any{}
	for name, f := range h.files {
		sibling := map[string]any{"rfilename": name, "size": f.size, "blobId": f.sha1}
		if f.size > large {
			sibling["lfs"] = map[string]any{"sha256": f.sha256, "size": f.size, "pointerSize": 134}
		}
		siblings = append(siblings, sibling)
	}
	json.NewEncoder(w).Encode(map[string]any{"id": h.repo, "modelId": h.repo, "sha": commit, "private": h.token != "",
		"tags": []string{}, "downloads": 0, "likes": 0, "siblings": siblings})
}

func (h *hub) tree(w http.ResponseWriter, commit string) {
	if commit == "" {
		w.Header().Set("X-Error-Code", "RevisionNotFound")
		http.Error(w, "Revision not found", http.StatusNotFound)
		return
	}
	entries := []map[string]any{}
	for name, f := range h.files {
		entry := map[string]any{"type": "file", "path": name, "size": f.size, "oid": f.sha1}
		if f.size > large {
			entry["lfs"] = map[string]any{"oid": f.sha256, "size": f.size, "pointerSize": 134}
		}
		entries = append(entries, entry)
	}
	json.NewEncoder(w).Encode(entries)
}

func (h *hub) file(w http.ResponseWriter, r *http.Request, f file, name, commit string) {
	w.Header().Set("X-Repo-Commit", commit)
	if f.size > large {
		host, _, _ := net.SplitHostPort(r.Host)
		w.Header().Set("X-Linked-Etag", `"`+f.sha256+`"`)
		w.Header().Set("X-Linked-Size", fmt.Sprint(f.size))
		http.Redirect(w, r, "http://"+net.JoinHostPort(host, h.store)+"/"+name, http.StatusFound)
		return
	}
	w.Header().Set("ETag", `"`+f.sha1+`"`)
	http.ServeFile(w, r, f.path)
}

func (h *hub) fromStore(w http.ResponseWriter, r *http.Request) {
	f, known := h.files[strings.TrimPrefix(r.URL.Path, "/")]
	if r.Header.Get("Authorization") != "" || !known {
		http.Error(w, "one kind of authorization at a time", http.StatusBadRequest)
		return
	}
	w.Header().Set("ETag", `"`+f.sha256+`"`)
	http.ServeFile(w, r, f.path)
}
