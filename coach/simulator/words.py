"""Word lists that essays are measured against. Data only."""

from __future__ import annotations

from typing import Final


def _pairs(text: str) -> dict[str, str]:
    return {
        wrong: right.replace("_", " ")
        for wrong, right in (item.split(":") for item in text.split())
    }


# Common misspellings of students, each with what was meant; `_` stands for a space.
MISSPELLINGS: Final = _pairs(
    """
    absense:absence acceptible:acceptable accidently:accidentally accomodate:accommodate
    accross:across acheive:achieve acheived:achieved acknowlege:acknowledge acording:according
    actualy:actually adress:address advertisment:advertisement agression:aggression
    agressive:aggressive allmost:almost allready:already allways:always alot:a_lot
    alright:all_right amature:amateur ammount:amount anual:annual anwser:answer apparantly:apparently
    appearence:appearance arguement:argument arguements:arguments athiest:atheist attendence:attendance
    avrage:average awfull:awful basicly:basically beacuse:because beautifull:beautiful becasue:because
    becaus:because becuase:because becouse:because befor:before begining:beginning beleif:belief
    beleive:believe beleived:believed beleives:believes benifit:benefit benifits:benefits
    bigest:biggest bigger_then:bigger_than bord:bored breath_taking:breathtaking brocoli:broccoli
    buisness:business bussiness:business calender:calendar carefull:careful carefuly:carefully
    catagory:category caugt:caught cemetary:cemetery certian:certain challange:challenge
    changable:changeable charachter:character charactor:character childs:children choclate:chocolate
    choosen:chosen coffing:coughing collegue:colleague comming:coming commitee:committee
    commited:committed comparision:comparison completly:completely concious:conscious
    conclussion:conclusion confortable:comfortable contries:countries controled:controlled
    conveniant:convenient couldnt:couldn't cruelity:cruelty curiousity:curiosity curteous:courteous
    damagd:damaged decieve:deceive decison:decision definately:definitely definatly:definitely
    definitly:definitely dependant:dependent descibe:describe desicion:decision desparate:desperate
    developement:development diffrence:difference diffrent:different difficulty_s:difficulties
    dilema:dilemma disapear:disappear disapeared:disappeared disapoint:disappoint
    disapointed:disappointed disaster_s:disasters didnt:didn't doesnt:doesn't dosent:doesn't
    dont:don't droped:dropped droping:dropping eachother:each_other easely:easily ecspecially:especially
    effecient:efficient eighth_s:eighths embarass:embarrass embarassed:embarrassed embarrased:embarrassed
    enviroment:environment enviromental:environmental equiptment:equipment essense:essence
    espically:especially especialy:especially evrybody:everybody evry:every evryone:everyone
    evrything:everything exagerate:exaggerate excelent:excellent excercise:exercise excited_s:excited
    existance:existence exitement:excitement expecially:especially expensiv:expensive
    experiance:experience experiances:experiences explaination:explanation extreem:extreme
    extremly:extremely familar:familiar famouse:famous fasinating:fascinating favorit:favourite
    feild:field finaly:finally finnally:finally firey:fiery firstable:first_of_all foriegn:foreign
    foward:forward freind:friend freinds:friends freindly:friendly frend:friend frends:friends
    fullfil:fulfil furthur:further generaly:generally goverment:government grammer:grammar
    gratefull:grateful greatful:grateful guage:gauge guarentee:guarantee guidence:guidance
    hapened:happened hapen:happen happend:happened happends:happens hapily:happily harrass:harass
    hasnt:hasn't havent:haven't heared:heard helpfull:helpful heros:heroes hieght:height
    higer:higher hopefuly:hopefully humourous:humorous hygeine:hygiene hypocrit:hypocrite
    idear:idea imagin:imagine immediatly:immediately imediately:immediately importent:important
    importence:importance incase:in_case independant:independent infact:in_fact inocent:innocent
    inspite:in_spite intelligance:intelligence intrested:interested intresting:interesting
    interupt:interrupt irrelevent:irrelevant isnt:isn't jealousy_s:jealousies jewelery:jewellery
    knowlege:knowledge kindergarden:kindergarten labratory:laboratory lenght:length liason:liaison
    libary:library lisence:licence litle:little liturature:literature lonley:lonely loosing:losing
    luckly:luckily maintainance:maintenance maintenence:maintenance managment:management
    marrage:marriage mathmatics:mathematics meen:mean memorys:memories millenium:millennium
    minature:miniature mispell:misspell mispelled:misspelled mischievious:mischievous mosly:mostly
    naturaly:naturally neccesary:necessary neccessary:necessary necesary:necessary nessecary:necessary
    neighbor_s:neighbours nieghbor:neighbour nineth:ninth nite:night noone:no_one noticable:noticeable
    ocasion:occasion occassion:occasion occassionally:occasionally occured:occurred
    occurence:occurrence occuring:occurring ofcourse:of_course oportunity:opportunity oppinion:opinion
    opinon:opinion oposite:opposite orginal:original ourselfs:ourselves outragous:outrageous
    parliment:parliament particulary:particularly pasttime:pastime peice:piece peices:pieces
    peopel:people peple:people perfectley:perfectly performence:performance permenant:permanent
    perseverence:perseverance persue:pursue personaly:personally phisical:physical plastick:plastic
    playright:playwright poluted:polluted polution:pollution posession:possession possable:possible
    posible:possible practicaly:practically preferr:prefer prefered:preferred prehaps:perhaps
    presant:present presense:presence privelege:privilege priviledge:privilege probaly:probably
    probly:probably problably:probably proffesional:professional proffessor:professor
    prommise:promise pronounciation:pronunciation psycology:psychology publically:publicly
    quiz_s:quizzes realy:really reccomend:recommend recomend:recommend recieve:receive
    recieved:received recieves:receives recyle:recycle refered:referred refering:referring
    relevent:relevant religous:religious rember:remember remeber:remember repitition:repetition
    resistence:resistance responsability:responsibility responsable:responsible restarant:restaurant
    resturant:restaurant rhyme_s:rhymes rythm:rhythm sacrafice:sacrifice safty:safety sandwichs:sandwiches
    saterday:Saturday scaryest:scariest scedule:schedule sceince:science scince:science
    secratary:secretary seeweed:seaweed seige:siege sence:sense sentance:sentence sentances:sentences
    seperate:separate seperated:separated seperately:separately shouldnt:shouldn't similer:similar
    sieze:seize simular:similar sincerly:sincerely skilfull:skilful sombody:somebody somthing:something
    somtimes:sometimes soldger:soldier speach:speech specialy:specially stomache:stomach
    stoped:stopped stoping:stopping storys:stories stong:strong strenght:strength studing:studying
    succesful:successful successfull:successful succesfully:successfully succes:success sucess:success
    suddenley:suddenly sudenly:suddenly suport:support suprise:surprise suprised:surprised
    suprising:surprising surley:surely surprized:surprised swiming:swimming tatoo:tattoo
    teached:taught tecnology:technology temperture:temperature terible:terrible thats:that's
    themselfs:themselves theirselves:themselves therefor:therefore thier:their thingk:think
    thougt:thought thoughout:throughout throught:through tommorow:tomorrow tommorrow:tomorrow
    tomorow:tomorrow tounge:tongue togather:together togehter:together traveled_s:travelled
    tresure:treasure truely:truly tryed:tried tuesday:Tuesday twelth:twelfth tyrany:tyranny
    underate:underrate uneccesary:unnecessary unfortunatly:unfortunately unforseen:unforeseen
    untill:until unusuall:unusual usefull:useful useing:using usualy:usually vaccum:vacuum
    valueable:valuable vegtable:vegetable vegtables:vegetables vehical:vehicle villian:villain
    visable:visible wasnt:wasn't weather_s:weather wearever:wherever wellcome:welcome wensday:Wednesday
    wendsday:Wednesday werent:weren't wether:whether whould:would wich:which wierd:weird
    wonderfull:wonderful wont:won't wouldnt:wouldn't writting:writing writen:written writed:wrote
    youre:you're yeild:yield yesturday:yesterday catched:caught buyed:bought goed:went runned:ran
    thinked:thought eated:ate gived:gave maked:made comed:came bringed:brought feeled:felt
    keeped:kept leaved:left telled:told knowed:knew taked:took drived:drove speaked:spoke falled:fell
    seagul:seagull plasic:plastic animels:animals turtels:turtles fishs:fishes sugested:suggested
    uniformes:uniforms techer:teacher techers:teachers scool:school skool:school clases:classes
    studant:student studants:students childern:children homwork:homework wouldve:would've
    couldve:could've shouldve:should've im:I'm ive:I've whos:who's theyre:they're theres:there's
    lets_s:let's favrite:favourite beutiful:beautiful beautyful:beautiful hopeing:hoping
    makeing:making takeing:taking haveing:having writeing:writing comeing:coming liveing:living
    gost:ghost gosts:ghosts windos:windows shure:sure mabe:maybe mabey:maybe agian:again agin:again
    anser:answer anouther:another brige:bridge brouht:brought cauze:cause chane:chain clime:climb
    coud:could woud:would shoud:should dident:didn't dosnt:doesn't enuf:enough enough_s:enough
    exept:except fourty:forty gard:guard gess:guess grate_s:great hav:have heavan:heaven
    intresed:interested jumpt:jumped laught:laughed looket:looked neer:near nobodys:nobody's
    onse:once oportunities:opportunities pepole:people plese:please pritty:pretty rong:wrong
    sed:said shood:should siad:said stoped_s:stopped takle:tackle thay:they thier_s:theirs
    thru:through tuff:tough turnd:turned wanna:want_to gonna:going_to wen:when wat:what
    wi:why wint:went wite:white wuz:was yu:you cuz:because u:you
    """
)

# A confusion is a pattern of lower-case words and the word of it that is wrong (0-based), with
# what was meant. `*` stands for any word.
CONFUSIONS: Final[tuple[tuple[tuple[str, ...], int, str], ...]] = (
    *(
        ((wrong, verb), 0, "there")
        for wrong in ("their", "they're")
        for verb in ("is", "are", "was", "were", "will", "isn't", "aren't")
    ),
    *(
        (("there", noun), 0, "their")
        for noun in (
            *("own", "house", "parents", "family", "friends", "phones", "phone", "homework"),
            *("clothes", "children", "lives", "life", "teacher", "teachers", "eyes", "hands"),
        )
    ),
    *((("your", verb), 0, "you're") for verb in ("going", "not", "welcome", "wrong", "right")),
    *(
        (("its", word), 0, "it's")
        for word in ("a", "an", "the", "not", "very", "really", "important", "hard", "easy", "like")
    ),
    *(((adverb, "then"), 1, "than") for adverb in ("better", "more", "worse", "less", "bigger")),
    *(((word, "of"), 1, "have") for word in ("could", "should", "would", "might", "must")),
    *(
        (("to", word), 0, "too")
        for word in ("much", "many", "late", "small", "big", "hard", "long")
    ),
    (("had", "are", "*"), 1, "our"),
    (("with", "are", "*"), 1, "our"),
    (("witch", "is"), 0, "which"),
    (("witch", "was"), 0, "which"),
    (("the", "hole", "*"), 1, "whole"),
    (("a", "other"), 0, "another"),
    (("me", "and", "my"), 0, "my … and I"),
    (("he", "don't"), 1, "doesn't"),
    (("she", "don't"), 1, "doesn't"),
    (("it", "don't"), 1, "doesn't"),
    *(((pronoun, "was"), 1, "were") for pronoun in ("we", "they", "you")),
    *(((pronoun, "were"), 1, "was") for pronoun in ("he", "she")),
    *(((pronoun, "is"), 1, "are") for pronoun in ("we", "they", "you")),
    *(((pronoun, "has"), 1, "have") for pronoun in ("we", "they", "you")),
    *(((pronoun, "have"), 1, "has") for pronoun in ("he", "she", "it")),
    (("hands", "was"), 1, "were"),
    (("people", "is"), 1, "are"),
    (("people", "was"), 1, "were"),
    (("children", "is"), 1, "are"),
    (("less", "people"), 0, "fewer"),
    (("the", "beech"), 1, "beach"),
)

TRANSITIONS: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("first", "firstly", "second", "secondly", "third", "thirdly", "next", "then", "finally")
        + ("lastly", "afterwards", "later", "meanwhile", "eventually", "before", "after", "when")
        + ("once", "soon", "until", "to begin with", "in the end", "at first", "at last"),
        "order",
    ),
    **dict.fromkeys(
        ("because", "since", "therefore", "so that", "as a result", "consequently", "thus")
        + ("this means", "that is why", "for this reason", "hence", "which is why"),
        "reason",
    ),
    **dict.fromkeys(
        (
            "however",
            "although",
            "though",
            "but",
            "yet",
            "on the other hand",
            "nevertheless",
            "while",
        )
        + ("instead", "whereas", "despite", "even so", "in contrast", "rather than", "still"),
        "contrast",
    ),
    **dict.fromkeys(
        ("also", "moreover", "furthermore", "in addition", "besides", "another", "as well"),
        "addition",
    ),
    **dict.fromkeys(
        ("for example", "for instance", "such as", "in fact", "in particular", "consider"),
        "example",
    ),
    **dict.fromkeys(
        ("in conclusion", "to conclude", "in short", "overall", "to sum up", "in summary"),
        "conclusion",
    ),
}

EVIDENCE: Final = frozenset(
    """
    because example instance evidence study studies research according shows showed prove proves
    proof reason reasons means percent figures statistics fact facts survey therefore argue argues
    suggests suggest explains explain demonstrates caused causes result results why
    """.split()
)

FUNCTION_WORDS: Final = frozenset(
    """
    a about above after again all also am an and any are as at be because been before being below
    between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down
    during each even every few for from further get gets got had hadn't has hasn't have haven't
    having he her here hers herself him himself his how i if i'd i'll i'm i've in into is isn't it
    its it's itself just like me more most much my myself no nor not now of off on once one only or
    other our ours ourselves out over own really said same say says she should so some such than
    that that's the their theirs them themselves then there there's these they they're this those
    through to too two under until up us very was wasn't we we're were what when where which while
    who whom why will with won't would wouldn't yet you your yours yourself yourselves though still
    may might must shall never ever always often made make makes went go goes going came come comes
    thing things something anything everything someone everyone people way well back many
    """.split()
)

DETERMINERS: Final = frozenset("a an the my your our their every".split())
NEVER_AFTER_DETERMINER: Final = frozenset(
    """
    a an the of to in on at by for from with and or but is was are were be been has have had do does
    did will would can could should he she it they we i him them us me my your our their his this
    that these those if because so as not than into who what when where
    """.split()
)

# Words that stand where an exact one could.
VAGUE: Final = frozenset(
    """
    nice good bad great amazing awesome stuff things thing lots big cool interesting fun
    """.split()
)

# Words that claim something a reader may doubt.
CLAIMS: Final = frozenset(
    """
    should must always never everyone everybody nobody best worst better worse important need needs
    believe opinion clear clearly obviously wrong cannot proves means
    """.split()
)
