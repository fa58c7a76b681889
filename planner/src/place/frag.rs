//! Fragmentation: how much of what is free, the replicas to be expected could not use.
//!
//! Weng et al., "Beware of Fragmentation" (ATC'23), in our buckets: see the design notes on GPU
//! placement. Numbers only, no names. CPU in thousandths of a core, GPU in thousandths of a GPU.

/// A kind of replica to be expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub cpu_milli: i64,
    /// Per GPU; 0: needs none.
    pub gpu_milli: i64,
    pub gpus: i64,
    /// Bit per GPU type that would do; 0: any.
    pub types: u64,
    /// Share of all expected replicas; the shapes of one demand sum to 1.
    pub probability: f64,
}

/// One GPU: what is free of it, and its type as a bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeGpu {
    pub milli: i64,
    pub kind: u8,
}

/// The replicas to be expected, and how wanted each GPU type is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    pub shapes: Vec<Shape>,
    /// GPU demand that names the type ÷ capacity of the type, by bit number.
    pub scarcity: Vec<f64>,
}

/// Expected free milli-GPU of a node that a replica drawn from the demand cannot use.
pub fn fragmentation(cpu_milli: i64, gpus: &[FreeGpu], shapes: &[Shape]) -> f64 {
    let total: i64 = gpus.iter().map(|g| g.milli).sum();
    if total == 0 {
        return 0.0;
    }
    shapes.iter().map(|s| s.probability * unusable(cpu_milli, gpus, total, s) as f64).sum()
}

fn unusable(cpu_milli: i64, gpus: &[FreeGpu], total: i64, shape: &Shape) -> i64 {
    if shape.gpu_milli == 0 || cpu_milli < shape.cpu_milli {
        return total;
    }
    let mut fits = 0;
    let mut short = 0;
    for gpu in gpus {
        let kind_ok = shape.types == 0 || shape.types >> gpu.kind & 1 == 1;
        if kind_ok && gpu.milli >= shape.gpu_milli {
            fits += 1;
        } else {
            short += gpu.milli;
        }
    }
    if fits >= shape.gpus { short } else { total }
}

/// What a placement asks, for the score.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Thousandths of a GPU in all; 0: needs none.
    pub gpu_milli: i64,
    /// It would take any type.
    pub flexible: bool,
}

/// Constants of the packing score.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    pub bucket_milli: f64,
    pub reserve_milli: f64,
    pub cpu: f64,
    pub gpu: f64,
    pub balance: f64,
    pub scarcity: f64,
}

impl Weights {
    /// The design's constants; chosen on other seeds than those it is judged by.
    pub const DESIGN: Weights =
        Weights { bucket_milli: 40.0, reserve_milli: 200.0, cpu: 0.25, gpu: 0.75, balance: 0.25, scarcity: 3.0 };
    /// A large node, to which what is left is compared.
    const CPU: f64 = 128_000.0;
    const GPU: f64 = 8_000.0;

    /// The bucketed gradient: more is better. `gain` = F before − F after.
    pub fn bucket(&self, gain: f64, request: &Request, scarcity: f64) -> i64 {
        let asked = request.gpu_milli as f64 / 1000.0;
        let reserve = if request.flexible { self.reserve_milli * scarcity * asked } else { 0.0 };
        ((gain - reserve) / self.bucket_milli).floor() as i64
    }

    /// How loosely the node would be filled, and how unevenly: less is better.
    pub fn looseness(&self, cpu_left: i64, gpu_left: i64, request: &Request, scarcity: f64) -> f64 {
        let (cpu, gpu) = (cpu_left as f64 / Self::CPU, gpu_left as f64 / Self::GPU);
        let wanted = if request.gpu_milli > 0 { scarcity } else { 0.0 };
        self.cpu * cpu + self.gpu * gpu + self.balance * (cpu - gpu).abs() + self.scarcity * wanted
    }
}

/// The commonest shapes that cover `share` of all, with probabilities among themselves.
/// `counted` need not be sorted; ties are ordered by shape.
pub fn typical(counted: impl IntoIterator<Item = ((i64, i64, i64, u64), f64)>, share: f64) -> Vec<Shape> {
    let mut all: Vec<_> = counted.into_iter().filter(|(_, n)| *n > 0.0).collect();
    all.sort_by(|(ka, a), (kb, b)| b.total_cmp(a).then(kb.cmp(ka)));
    let total: f64 = all.iter().map(|(_, n)| n).sum();
    let mut covered = 0.0;
    let mut kept = Vec::new();
    for (key, n) in all {
        if covered >= share * total {
            break;
        }
        covered += n;
        kept.push((key, n));
    }
    kept.into_iter()
        .map(|((cpu_milli, gpu_milli, gpus, types), n)| Shape {
            cpu_milli,
            gpu_milli,
            gpus,
            types,
            probability: n / covered,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(cpu_milli: i64, gpu_milli: i64, gpus: i64, types: u64) -> Shape {
        Shape { cpu_milli, gpu_milli, gpus, types, probability: 1.0 }
    }

    fn check(cpu: i64, free: &[i64], s: Shape, want: f64) {
        let gpus: Vec<_> = free.iter().map(|m| FreeGpu { milli: *m, kind: 1 }).collect();
        assert_eq!(fragmentation(cpu, &gpus, &[s]), want);
    }

    #[test]
    fn a_full_node_has_nothing_to_fragment() {
        check(0, &[0, 0], shape(1, 500, 1, 0), 0.0);
    }

    #[test]
    fn gpus_with_too_little_left_are_lost() {
        check(10, &[400, 600, 1000], shape(1, 500, 1, 0), 400.0);
    }

    #[test]
    fn too_few_gpus_lose_all() {
        check(10, &[400, 600, 300], shape(1, 500, 2, 0), 1300.0);
    }

    #[test]
    fn short_of_cpu_or_of_another_type_loses_all() {
        check(0, &[1000], shape(1, 500, 1, 0), 1000.0);
        check(10, &[1000], shape(1, 500, 1, 0b01), 1000.0);
        check(10, &[1000], shape(1, 500, 1, 0b10), 0.0);
    }

    #[test]
    fn replicas_without_gpu_use_none_of_it() {
        check(10, &[1000], shape(1, 0, 0, 0), 1000.0);
    }

    #[test]
    fn typical_shapes_cover_the_share_commonest_first() {
        let t = typical([((1, 0, 0, 0), 1.0), ((2, 500, 1, 0), 6.0), ((3, 1000, 1, 0), 3.0)], 0.9);
        let got: Vec<_> = t.iter().map(|s| (s.cpu_milli, s.probability)).collect();
        assert_eq!(got, [(2, 6.0 / 9.0), (3, 3.0 / 9.0)]);
    }
}
