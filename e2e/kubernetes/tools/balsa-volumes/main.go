// Command balsa-volumes provides the persistent volumes of the local cluster: a folder for each claim of its storage
// class. Kubernetes has a provisioner of host paths built in, but to those the kubelet does not apply fsGroup (a process
// that is not root could not write), and they cannot grow; `local` volumes get the first, and this program does the rest.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// resync is how soon a step that failed is tried again.
const resync = 5 * time.Second

type provisioner struct {
	client      kubernetes.Interface
	class       string // name of the storage class, and of its provisioner
	node        string // the only node that has the folders
	root        string // where the folders are
	provisioner string
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	p := provisioner{provisioner: "balsa.dev/volumes"}
	flag.StringVar(&p.class, "class", "standard", "the storage class to serve")
	flag.StringVar(&p.node, "node", "balsa-node", "the node that this runs on")
	flag.StringVar(&p.root, "root", "", "the folder to keep volumes in")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	p.client = kubernetes.NewForConfigOrDie(config)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p.run(ctx)
}

// run handles every change of a claim or a volume, and all of them again after each resync.
func (p provisioner) run(ctx context.Context) {
	factory := informers.NewSharedInformerFactory(p.client, resync)
	handle := func(object any) {
		var err error
		switch object := object.(type) {
		case *core.PersistentVolumeClaim:
			err = p.reconcileClaim(ctx, object)
		case *core.PersistentVolume:
			err = p.reconcileVolume(ctx, object)
		}
		if err != nil {
			log.Print(err)
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: handle, UpdateFunc: func(_, object any) { handle(object) }}
	factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(handler)
	factory.Core().V1().PersistentVolumes().Informer().AddEventHandler(handler)
	factory.Start(ctx.Done())
	<-ctx.Done()
}

func (p provisioner) reconcileClaim(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	if claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != p.class {
		return nil
	}
	if claim.Spec.VolumeName == "" {
		return p.provision(ctx, claim)
	}
	return p.grow(ctx, claim)
}

func (p provisioner) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	name := "pvc-" + string(claim.UID)
	path := filepath.Join(p.root, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	_, err := p.client.CoreV1().PersistentVolumes().Create(ctx, p.volume(name, path, claim), meta.CreateOptions{})
	if err != nil && !errors.IsAlreadyExists(err) {
		return fmt.Errorf("volume for %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

// volume is bound to its claim from the start by the claim's UID, so that no other claim can take it.
func (p provisioner) volume(name, path string, claim *core.PersistentVolumeClaim) *core.PersistentVolume {
	here := core.NodeSelectorRequirement{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{p.node}}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": p.provisioner}},
		Spec: core.PersistentVolumeSpec{
			StorageClassName:              p.class,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    claim.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: path}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{MatchExpressions: []core.NodeSelectorRequirement{here}}},
			}},
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
		},
	}
}

// grow gives a claim the larger size that it asks for. A folder has no size of its own, so that only the numbers change.
func (p provisioner) grow(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	want, have := claim.Spec.Resources.Requests[core.ResourceStorage], claim.Status.Capacity[core.ResourceStorage]
	if claim.Status.Phase != core.ClaimBound || want.Cmp(have) <= 0 {
		return nil
	}
	volume, err := p.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, meta.GetOptions{})
	if err != nil {
		return err
	}
	volume.Spec.Capacity[core.ResourceStorage] = want
	if _, err := p.client.CoreV1().PersistentVolumes().Update(ctx, volume, meta.UpdateOptions{}); err != nil {
		return err
	}
	grown := claim.DeepCopy()
	grown.Status.Capacity[core.ResourceStorage] = want
	grown.Status.Conditions = nil
	_, err = p.client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, grown, meta.UpdateOptions{})
	return err
}

// reconcileVolume removes the folder of a volume whose claim is gone, then the volume.
func (p provisioner) reconcileVolume(ctx context.Context, volume *core.PersistentVolume) error {
	released := volume.Status.Phase == core.VolumeReleased &&
		volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete
	ours := volume.Annotations["pv.kubernetes.io/provisioned-by"] == p.provisioner && volume.Spec.Local != nil
	if !ours || !released || volume.DeletionTimestamp != nil {
		return nil
	}
	// Only what lies directly below the root was made by provision.
	if filepath.Dir(volume.Spec.Local.Path) != filepath.Clean(p.root) {
		return fmt.Errorf("volume %s lies outside %s", volume.Name, p.root)
	}
	if err := os.RemoveAll(volume.Spec.Local.Path); err != nil {
		return err
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}
